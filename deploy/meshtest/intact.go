package meshtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Intact reads all that durable snapshots name from the object store itself, and fails the test if a byte of it is missing or wrong.
func (s *Suite) Intact(t *testing.T, ctx context.Context) {
	t.Helper()
	c, err := s.Mesh.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	named := func() map[string]object {
		rows, err := c.Query(ctx, `SELECT s.id, o.key, o.path, o.size_bytes, o.sha256, o.stored FROM snapshot.snapshot s
			JOIN snapshot.reference r ON r.snapshot_id = s.id JOIN snapshot.object o ON o.key = r.key WHERE s.state = 'DURABLE'`)
		if err != nil {
			t.Fatal(err)
		}
		list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[object])
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]object{}
		for _, o := range list {
			all[o.Path] = o
		}
		return all
	}
	wrong := map[string]error{}
	all := named()
	for path, o := range all {
		if err := s.whole(ctx, o); err != nil {
			wrong[path] = err
		}
	}
	if len(wrong) > 0 {
		all = named() // What nothing names any more was collected meanwhile.
	}
	for path, err := range wrong {
		if o, still := all[path]; still {
			t.Errorf("durable snapshot %s: object %s (%d bytes, stored %v) is missing or damaged: %v", o.Snapshot, o.Key, o.Size, o.Stored, err)
		}
	}
	t.Logf("%d objects of durable snapshots are whole", len(all))
}

// object is an object as the registry's database has it.
type object struct {
	Snapshot, Key, Path string
	Size                int64
	SHA256              []byte
	Stored              bool
}

// whole reads an object and compares its checksum.
func (s *Suite) whole(ctx context.Context, o object) error {
	if !o.Stored {
		return fmt.Errorf("the registry does not say that it has it")
	}
	r, err := s.readObject(ctx, o.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	switch {
	case err != nil:
		return err
	case n != o.Size:
		return fmt.Errorf("it has %d bytes", n)
	case !bytes.Equal(sum.Sum(nil), o.SHA256):
		return fmt.Errorf("its checksum is %x, not %x", sum.Sum(nil), o.SHA256)
	}
	return nil
}

// readObject reads an object past the registry: a file, or over S3's protocol, from a server that wants no signature.
func (s *Suite) readObject(ctx context.Context, path string) (io.ReadCloser, error) {
	if s.Mesh.Objects == nil {
		return os.Open(filepath.Join(s.Mesh.Dir, "objects", path))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/%s/%s", s.Mesh.Objects.Addr, s.Mesh.Objects.Bucket, path), nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Transport{DialContext: s.Mesh.Dial, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s, %w", res.Status, res.Body.Close())
	}
	return res.Body, nil
}
