package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/coveyhq/covey/services/chassis/leaktest"
	"github.com/coveyhq/covey/snapshotsvc/registry"
	"github.com/coveyhq/covey/snapshotsvc/store"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }

const mib = 1 << 20

// maker opens the same store again, as a process does after a crash.
type maker func(t *testing.T) registry.Store

func directory(t *testing.T) maker {
	dir := t.TempDir()
	return func(t *testing.T) registry.Store {
		d, err := store.NewDirectory(dir)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

// bucket is a server that speaks S3 over HTTP, with parts of the least size that S3 allows.
func bucket(t *testing.T) maker {
	backend := s3mem.New()
	if err := backend.CreateBucket("covey"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		srv.CloseClientConnections()
		srv.Close()
	})
	return func(t *testing.T) registry.Store {
		s, err := store.NewS3(t.Context(), store.S3Options{
			Endpoint: strings.TrimPrefix(srv.URL, "http://"), Bucket: "covey", Prefix: "objects", Region: "us-east-1",
			AccessKey: "a", SecretKey: "s", PathStyle: true, PartSize: 5 * mib,
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// both runs a test on every kind of store.
func both(t *testing.T, fn func(t *testing.T, open maker)) {
	t.Run("directory", func(t *testing.T) { fn(t, directory(t)) })
	t.Run("s3", func(t *testing.T) { fn(t, bucket(t)) })
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}).Read(b)
	return b
}

func begin(t *testing.T, s registry.Store, path string, content []byte) registry.StoreUpload {
	t.Helper()
	u, err := s.Begin(t.Context(), path, int64(len(content)), sha256.Sum256(content))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// write sends content from where the upload is up to an end, in pieces of odd sizes.
func write(t *testing.T, u registry.StoreUpload, content []byte, end int) {
	t.Helper()
	for int(u.Offset()) < end {
		p := content[u.Offset():end]
		if err := u.Write(t.Context(), p[:min(len(p), 300_001)]); err != nil {
			t.Fatal(err)
		}
	}
}

func put(t *testing.T, s registry.Store, path string, content []byte) {
	t.Helper()
	u := begin(t, s, path, content)
	write(t, u, content, len(content))
	if err := errors.Join(u.Finish(t.Context()), u.Close()); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s registry.Store, path string, off, n int64) []byte {
	t.Helper()
	r, err := s.Read(t.Context(), path, off, n)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func walk(t *testing.T, s registry.Store) []string {
	t.Helper()
	var all []string
	if err := s.Walk(t.Context(), func(p string) error { all = append(all, p); return nil }); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestWhatWasFinishedIsReadBackInAnyRange(t *testing.T) {
	both(t, func(t *testing.T, open maker) {
		s := open(t)
		for _, size := range []int{0, 1, 4096, 5 * mib, 5*mib + 1, 12*mib + 77} {
			path, content := fmt.Sprintf("builds/b%d@x", size), random(size)
			put(t, s, path, content)
			if n, err := s.Stat(t.Context(), path); err != nil || n != int64(size) {
				t.Fatalf("stat of %d bytes: %d, %v", size, n, err)
			}
			if !bytes.Equal(read(t, s, path, 0, int64(size)), content) {
				t.Fatalf("%d bytes differ", size)
			}
			if size > 4096 {
				off := int64(size - 4096)
				if !bytes.Equal(read(t, s, path, off, 100), content[off:off+100]) {
					t.Fatalf("range of %d bytes differs", size)
				}
			}
		}
		if got := walk(t, s); len(got) != 6 {
			t.Fatalf("walked %v", got)
		}
	})
}

func TestAnUploadGoesOnInAnotherProcess(t *testing.T) {
	both(t, func(t *testing.T, open maker) {
		content := random(16*mib + 5)
		u := begin(t, open(t), "builds/a@1", content)
		write(t, u, content, 11*mib)
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
		s := open(t)
		if _, err := s.Stat(t.Context(), "builds/a@1"); !errors.Is(err, registry.ErrAbsent) {
			t.Fatalf("half an object: %v", err)
		}
		u = begin(t, s, "builds/a@1", content)
		if u.Offset() < 10*mib || u.Offset() > 11*mib {
			t.Fatalf("goes on at %d", u.Offset())
		}
		write(t, u, content, len(content))
		if err := errors.Join(u.Finish(t.Context()), u.Close()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(read(t, s, "builds/a@1", 0, int64(len(content))), content) {
			t.Fatal("bytes differ")
		}
		again := begin(t, s, "builds/a@1", content)
		defer again.Close()
		if again.Offset() != int64(len(content)) || again.Finish(t.Context()) != nil {
			t.Fatalf("a whole one is begun again at %d", again.Offset())
		}
	})
}

func TestBytesWithAWrongChecksumNeverAppearAndAreNotKept(t *testing.T) {
	both(t, func(t *testing.T, open maker) {
		for _, size := range []int{1000, 7 * mib} {
			s, content, path := open(t), random(size), fmt.Sprintf("builds/%d@1", size)
			wrong := slices.Clone(content)
			wrong[size/2] ^= 1
			u := begin(t, s, path, content)
			write(t, u, wrong, size)
			if err := u.Finish(t.Context()); !errors.Is(err, registry.ErrDamaged) {
				t.Fatalf("finished: %v", err)
			}
			if err := u.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Stat(t.Context(), path); !errors.Is(err, registry.ErrAbsent) {
				t.Fatalf("appeared: %v", err)
			}
			u = begin(t, s, path, content)
			if u.Offset() != 0 {
				t.Fatalf("%d wrong bytes were kept", u.Offset())
			}
			write(t, u, content, size)
			if err := errors.Join(u.Finish(t.Context()), u.Close()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestDeletionLeavesNothingWholeOrInPart(t *testing.T) {
	both(t, func(t *testing.T, open maker) {
		s, content := open(t), random(13*mib)
		put(t, s, "builds/whole@1", content)
		u := begin(t, s, "snapshots/s/state@1", content)
		write(t, u, content, 11*mib)
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
		if got := walk(t, s); !slices.Equal(got, []string{"builds/whole@1", "snapshots/s/state@1"}) {
			t.Fatalf("walked %v", got)
		}
		for _, p := range []string{"builds/whole@1", "snapshots/s/state@1", "builds/never@1"} {
			if err := s.Delete(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		if got := walk(t, s); len(got) != 0 {
			t.Fatalf("left %v", got)
		}
		if _, err := s.Read(t.Context(), "builds/whole@1", 0, 1); !errors.Is(err, registry.ErrAbsent) {
			t.Fatalf("read of a deleted object: %v", err)
		}
		if u := begin(t, s, "snapshots/s/state@1", content); u.Offset() != 0 {
			t.Fatalf("goes on at %d after a deletion", u.Offset())
		} else if err := u.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAnUploadThatWasDeletedUnderItsWriterDoesNotAppear(t *testing.T) {
	both(t, func(t *testing.T, open maker) {
		s, content := open(t), random(13*mib)
		u := begin(t, s, "builds/a@1", content)
		defer u.Close()
		write(t, u, content, 11*mib)
		if err := s.Delete(t.Context(), "builds/a@1"); err != nil {
			t.Fatal(err)
		}
		var err error
		for err == nil && u.Offset() < int64(len(content)) {
			p := content[u.Offset():]
			err = u.Write(t.Context(), p[:min(len(p), mib)])
		}
		if err == nil {
			err = u.Finish(t.Context())
		}
		if err == nil {
			t.Fatal("finished")
		}
		if _, err := s.Stat(t.Context(), "builds/a@1"); !errors.Is(err, registry.ErrAbsent) {
			t.Fatalf("appeared: %v", err)
		}
	})
}

// A file that was torn by a crash of the machine has its length but not its bytes.
func TestATornPartIsFoundAtTheEnd(t *testing.T) {
	dir, content := t.TempDir(), random(2*mib)
	s, err := store.NewDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	u := begin(t, s, "builds/a@1", content)
	write(t, u, content, mib)
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "builds/a@1.part"), make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	u = begin(t, s, "builds/a@1", content)
	defer u.Close()
	write(t, u, content, len(content))
	if err := u.Finish(t.Context()); !errors.Is(err, registry.ErrDamaged) {
		t.Fatalf("finished: %v", err)
	}
}

func TestOneWriterAtATimeHasAPart(t *testing.T) {
	open, content := directory(t), random(mib)
	u := begin(t, open(t), "builds/a@1", content)
	if _, err := open(t).Begin(context.Background(), "builds/a@1", mib, sha256.Sum256(content)); err == nil {
		t.Fatal("two writers")
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if err := begin(t, open(t), "builds/a@1", content).Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAMissingBucketIsSaidAtTheStart(t *testing.T) {
	srv := httptest.NewServer(gofakes3.New(s3mem.New()).Server())
	defer srv.Close()
	_, err := store.NewS3(t.Context(), store.S3Options{Endpoint: strings.TrimPrefix(srv.URL, "http://"), Bucket: "none", AccessKey: "a", SecretKey: "s", PathStyle: true, Region: "x"})
	if err == nil || !strings.Contains(err.Error(), "no bucket none") {
		t.Fatal(err)
	}
}
