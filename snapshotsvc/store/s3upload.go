package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"hash"

	"github.com/minio/minio-go/v7"

	"github.com/coveyhq/covey/snapshotsvc/registry"
)

// Begin implements registry.Store.
func (s *S3) Begin(ctx context.Context, path string, size int64, sum [32]byte) (registry.StoreUpload, error) {
	u := &s3Upload{s: s, path: path, size: size, sum: sum, hash: sha256.New()}
	switch n, err := s.Stat(ctx, path); {
	case err == nil && n == size:
		u.off, u.whole = size, true
		return u, nil
	case err == nil:
		return nil, fmt.Errorf("%s has %d bytes, not %d", path, n, size)
	case !errors.Is(err, registry.ErrAbsent):
		return nil, err
	}
	if size <= s.part {
		return u, nil
	}
	p, err := s.readProgress(ctx, path)
	if err != nil {
		return nil, err
	}
	if p != nil {
		u.p, u.off = *p, p.stored()
		return u, u.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(p.Hash)
	}
	u.p.PartSize = max(s.part, (size/maxParts+1<<20-1)>>20<<20)
	u.p.UploadID, err = s.core.NewMultipartUpload(ctx, s.bucket, s.key(path), minio.PutObjectOptions{})
	return u, err
}

// s3Upload implements registry.StoreUpload. An object of at most one part is collected in buf alone and has no UploadID.
type s3Upload struct {
	s    *S3
	path string
	size int64
	sum  [32]byte
	// off bytes were taken, and hashed; the last of them are in buf.
	off  int64
	hash hash.Hash
	buf  []byte
	p    progress
	// whole: the object is in its place.
	whole bool
}

func (u *s3Upload) Offset() int64 { return u.off }

func (u *s3Upload) Write(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		n := len(b)
		if u.p.UploadID != "" {
			n = int(min(int64(n), u.p.PartSize-int64(len(u.buf))))
		}
		u.hash.Write(b[:n])
		u.buf = append(u.buf, b[:n]...)
		u.off += int64(n)
		b = b[n:]
		if u.p.UploadID != "" && int64(len(u.buf)) == u.p.PartSize {
			if err := u.putPart(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// putPart stores what is in buf as the next part, and notes it.
func (u *s3Upload) putPart(ctx context.Context) error {
	s := u.s
	got, err := s.core.PutObjectPart(ctx, s.bucket, s.key(u.path), u.p.UploadID, len(u.p.Parts)+1, bytes.NewReader(u.buf), int64(len(u.buf)),
		minio.PutObjectPartOptions{Md5Base64: md5Of(u.buf), DisableContentSha256: true})
	if err != nil {
		return u.failed(ctx, err)
	}
	u.p.Parts = append(u.p.Parts, part{ETag: got.ETag, Size: int64(len(u.buf))})
	u.buf = u.buf[:0]
	if u.p.Hash, err = u.hash.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
		return err
	}
	return s.writeProgress(ctx, u.path, &u.p)
}

// failed gives the multipart upload up where it can never succeed: it was ended by another, or parts are not what they were.
func (u *s3Upload) failed(ctx context.Context, err error) error {
	switch minio.ToErrorResponse(err).Code {
	case minio.NoSuchUpload, minio.InvalidPart, "InvalidPartOrder", "EntityTooSmall":
		return errors.Join(err, u.abandon(ctx))
	}
	return err
}

// abandon forgets the multipart upload, so that the next try begins anew.
func (u *s3Upload) abandon(ctx context.Context) error {
	s := u.s
	err := s.core.RemoveObject(ctx, s.bucket, s.key(u.path)+progressSuffix, minio.RemoveObjectOptions{})
	if e := s.core.AbortMultipartUpload(ctx, s.bucket, s.key(u.path), u.p.UploadID); e != nil && !noSuch(e) {
		err = errors.Join(err, e)
	}
	return err
}

func (u *s3Upload) Finish(ctx context.Context) error {
	if u.whole {
		return nil
	}
	damaged := [32]byte(u.hash.Sum(nil)) != u.sum
	if u.p.UploadID == "" {
		if damaged {
			return registry.ErrDamaged
		}
		if err := u.s.put(ctx, u.path, u.buf); err != nil {
			return err
		}
		u.whole = true
		return nil
	}
	if damaged {
		return errors.Join(registry.ErrDamaged, u.abandon(ctx))
	}
	if len(u.buf) > 0 {
		if err := u.putPart(ctx); err != nil {
			return err
		}
	}
	return u.join(ctx)
}

// join makes one object of the parts.
func (u *s3Upload) join(ctx context.Context) error {
	s := u.s
	parts := make([]minio.CompletePart, len(u.p.Parts))
	for i, p := range u.p.Parts {
		parts[i] = minio.CompletePart{PartNumber: i + 1, ETag: p.ETag}
	}
	if _, err := s.core.CompleteMultipartUpload(ctx, s.bucket, s.key(u.path), u.p.UploadID, parts, minio.PutObjectOptions{}); err != nil {
		return u.failed(ctx, err)
	}
	u.whole = true
	// What tells of the upload is of no use now; left over, it goes with the object.
	if err := s.core.RemoveObject(ctx, s.bucket, s.key(u.path)+progressSuffix, minio.RemoveObjectOptions{}); err != nil && !noSuch(err) {
		return err
	}
	return nil
}

func (u *s3Upload) Close() error { return nil }
