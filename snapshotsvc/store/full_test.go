package store_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/snapshotsvc/store"
)

// TestAnUploadIntoAFullDirectoryFailsAndGoesOnOnceThereIsRoom has a file system of its own, which is full and then is larger.
func TestAnUploadIntoAFullDirectoryFailsAndGoesOnOnceThereIsRoom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a small file system: run as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	d, err := store.NewDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	const path, size, step = "builds/b@1", 2 << 20, 300 << 10
	data := make([]byte, size)
	rand.Read(data)
	sum := sha256.Sum256(data)
	write := func() (off int64, err error) {
		u, err := d.Begin(t.Context(), path, size, sum)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { err = errors.Join(err, u.Close()) }()
		from := u.Offset()
		for err == nil && u.Offset() < size {
			err = u.Write(t.Context(), data[u.Offset():min(size, u.Offset()+step)])
		}
		if err == nil {
			err = u.Finish(t.Context())
		}
		return from, err
	}
	for range 2 {
		if _, err := write(); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("while it is full: %v", err)
		}
	}
	if _, err := d.Stat(t.Context(), path); err == nil {
		t.Error("what is not whole is found")
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	from, err := write()
	if err != nil || from == 0 {
		t.Fatalf("with room, from %d on: %v", from, err)
	}
	r, err := d.Read(t.Context(), path, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes are read back, %v", len(got), err)
	}
}
