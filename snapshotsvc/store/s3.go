package store

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/coveyhq/covey/snapshotsvc/registry"
)

// Sizes of parts of multipart uploads. S3 wants at least 5 MiB and at most 10,000 parts.
const (
	defaultPart = 8 << 20
	maxParts    = 9000
)

// progressSuffix marks the objects that tell how far an upload is. Paths do not end with it.
const progressSuffix = ".upload"

// S3Options say where the objects are.
type S3Options struct {
	// Endpoint is host:port.
	Endpoint string
	TLS      bool
	Region   string
	Bucket   string
	// Prefix is put before every path, with a slash if it is not empty.
	Prefix string
	// AccessKey and SecretKey; without them the usual AWS variables, files and instance roles are used.
	AccessKey, SecretKey string
	// PathStyle puts the bucket in the path instead of the host name.
	PathStyle bool
	// PartSize of multipart uploads; default 8 MiB, larger for very large objects.
	PartSize int64
}

// S3 implements registry.Store in a bucket.
type S3 struct {
	core   *minio.Core
	bucket string
	prefix string
	part   int64
}

var _ registry.Store = (*S3)(nil)

// NewS3 connects to a bucket, which must exist.
func NewS3(ctx context.Context, o S3Options) (*S3, error) {
	lookup := minio.BucketLookupAuto
	if o.PathStyle {
		lookup = minio.BucketLookupPath
	}
	creds := credentials.NewStaticV4(o.AccessKey, o.SecretKey, "")
	if o.AccessKey == "" {
		creds = credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{}})
	}
	core, err := minio.NewCore(o.Endpoint, &minio.Options{Creds: creds, Secure: o.TLS, Region: o.Region, BucketLookup: lookup})
	if err != nil {
		return nil, fmt.Errorf("object store %s: %w", o.Endpoint, err)
	}
	there, err := core.BucketExists(ctx, o.Bucket)
	if err != nil {
		return nil, fmt.Errorf("object store %s, bucket %s: %w", o.Endpoint, o.Bucket, err)
	}
	if !there {
		return nil, fmt.Errorf("object store %s: there is no bucket %s; make it first", o.Endpoint, o.Bucket)
	}
	s := &S3{core: core, bucket: o.Bucket, prefix: strings.Trim(o.Prefix, "/"), part: o.PartSize}
	if s.prefix != "" {
		s.prefix += "/"
	}
	if s.part == 0 {
		s.part = defaultPart
	}
	return s, nil
}

func (s *S3) key(path string) string { return s.prefix + path }

// noSuch tells errors that mean that the thing is not there.
func noSuch(err error) bool {
	switch minio.ToErrorResponse(err).Code {
	case minio.NoSuchKey, "NotFound", minio.NoSuchUpload:
		return true
	}
	return false
}

func absentS3(err error) error {
	if err != nil && noSuch(err) {
		return fmt.Errorf("%w: %w", registry.ErrAbsent, err)
	}
	return err
}

// Stat implements registry.Store.
func (s *S3) Stat(ctx context.Context, path string) (int64, error) {
	info, err := s.core.StatObject(ctx, s.bucket, s.key(path), minio.StatObjectOptions{})
	return info.Size, absentS3(err)
}

// Read implements registry.Store.
func (s *S3) Read(ctx context.Context, path string, off, length int64) (io.ReadCloser, error) {
	if length == 0 {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	var o minio.GetObjectOptions
	if err := o.SetRange(off, off+length-1); err != nil {
		return nil, err
	}
	r, _, _, err := s.core.GetObject(ctx, s.bucket, s.key(path), o)
	if err != nil {
		return nil, absentS3(err)
	}
	return r, nil
}

// Delete implements registry.Store.
func (s *S3) Delete(ctx context.Context, path string) error {
	key := s.key(path)
	for _, k := range []string{key, key + progressSuffix} {
		if err := s.core.RemoveObject(ctx, s.bucket, k, minio.RemoveObjectOptions{}); err != nil && !noSuch(err) {
			return err
		}
	}
	return s.eachUpload(ctx, key, func(found, id string) error {
		if found != key {
			return nil
		}
		if err := s.core.AbortMultipartUpload(ctx, s.bucket, key, id); err != nil && !noSuch(err) {
			return err
		}
		return nil
	})
}

// eachUpload calls fn with every multipart upload under way of keys with a prefix.
func (s *S3) eachUpload(ctx context.Context, prefix string, fn func(key, id string) error) error {
	const page = 1000
	var key, id string
	for {
		r, err := s.core.ListMultipartUploads(ctx, s.bucket, prefix, key, id, "", page)
		if err != nil && noSuch(err) {
			return nil // What some servers say where there are none.
		}
		if err != nil {
			return err
		}
		for _, u := range r.Uploads {
			if err := fn(u.Key, u.UploadID); err != nil {
				return err
			}
		}
		if !r.IsTruncated {
			return nil
		}
		key, id = r.NextKeyMarker, r.NextUploadIDMarker
	}
}

// Walk implements registry.Store.
func (s *S3) Walk(ctx context.Context, fn func(string) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	path := func(key string) string { return strings.TrimSuffix(strings.TrimPrefix(key, s.prefix), progressSuffix) }
	for o := range s.core.Client.ListObjects(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix, Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		if err := fn(path(o.Key)); err != nil {
			return err
		}
	}
	return s.eachUpload(ctx, s.prefix, func(key, _ string) error { return fn(path(key)) })
}

// progress tells how far a multipart upload is.
type progress struct {
	UploadID string
	PartSize int64
	Parts    []part
	// Hash is the state of the SHA-256 over all parts.
	Hash []byte
}

type part struct {
	ETag string
	Size int64
}

func (p *progress) stored() (n int64) {
	for _, x := range p.Parts {
		n += x.Size
	}
	return n
}

// readProgress is nil where no upload of the path is under way.
func (s *S3) readProgress(ctx context.Context, path string) (*progress, error) {
	r, _, _, err := s.core.GetObject(ctx, s.bucket, s.key(path)+progressSuffix, minio.GetObjectOptions{})
	if noSuch(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	p := &progress{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("%s%s: %w", path, progressSuffix, err)
	}
	return p, nil
}

func (s *S3) writeProgress(ctx context.Context, path string, p *progress) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return s.put(ctx, path+progressSuffix, b)
}

// put stores a small object at once. As with parts, the MD5 guards the bytes on their way, so that they need no signature of
// their own, which some servers do not understand.
func (s *S3) put(ctx context.Context, path string, b []byte) error {
	_, err := s.core.PutObject(ctx, s.bucket, s.key(path), bytes.NewReader(b), int64(len(b)), md5Of(b), "", minio.PutObjectOptions{DisableContentSha256: true})
	return err
}

func md5Of(b []byte) string {
	sum := md5.Sum(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}
