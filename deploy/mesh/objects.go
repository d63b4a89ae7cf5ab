package mesh

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Objects is the S3 server of a mesh. Any key is taken.
type Objects struct {
	// Addr is host:port; HTTP.
	Addr   string `json:"addr"`
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
	Secret string `json:"secret"`
}

// ObjectsRegion is the region that the S3 server says it is in.
const ObjectsRegion = "us-east-1"

// objects starts the S3 server.
func (s *starter) objects(ctx context.Context, _ func(string)) (string, error) {
	if s.m.Objects == nil {
		port, err := freePort()
		if err != nil {
			return "", err
		}
		s.m.Objects = &Objects{
			Addr: net.JoinHostPort(s.host(ObjectsSite), strconv.Itoa(port)), Bucket: "covey", Key: "covey", Secret: "covey",
		}
	}
	if err := os.MkdirAll(s.path("objects"), 0o700); err != nil {
		return "", err
	}
	p := s.at(ObjectsSite, &Process{Name: "objects", Path: filepath.Join(s.t.Bin, "covey-objects"), Args: []string{
		"-listen", s.m.Objects.Addr, "-bucket", s.m.Objects.Bucket, "-file", s.path("objects", "objects.db"),
	}})
	if err := s.launch(p); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return "http://" + s.m.Objects.Addr, until(ctx, "the object store to listen", func(ctx context.Context) error {
		c, err := s.m.Dial(ctx, "tcp", s.m.Objects.Addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// store is snapshotd's configuration of where the bytes are.
func (s *starter) store() map[string]any {
	if s.m.Objects == nil {
		return map[string]any{"kind": "directory", "directory": s.path("objects")}
	}
	o := s.m.Objects
	return map[string]any{"kind": "s3", "s3": map[string]any{
		"endpoint": o.Addr, "insecure": true, "region": ObjectsRegion, "bucket": o.Bucket, "access_key": o.Key, "secret_key": o.Secret, "path_style": true,
	}}
}
