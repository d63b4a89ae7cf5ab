package attach

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/coveyhq/covey/hostagent/internal/disk"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const size = 4<<20 + 4096

// base is a disk's first content.
type base []byte

func (b base) Size() int64                 { return int64(len(b)) }
func (b base) Run(off int64) (int64, bool) { return int64(len(b)) - off, false }
func (b base) Local(_, _ int64) bool       { return true }
func (b base) ReadAt(_ context.Context, p []byte, off int64) (string, error) {
	copy(p, b[off:])
	return "local", nil
}

// served is a real disk of the host agent, served over NBD, and what an agent does that comes after another.
func served(t *testing.T, first base) (d *disk.Disk, again func() *disk.Disk, a firecracker.Attachment) {
	t.Helper()
	dir := t.TempDir()
	store, err := disk.NewStore(filepath.Join(dir, "overlay"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a = firecracker.Attachment{ID: "sb_1", Socket: filepath.Join(dir, "disk.sock"), Dir: dir, UID: 0, GID: 0}
	d, err = store.Create(t.Context(), a.ID, first, size, a.Socket, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Discard(context.Background()); err != nil {
			t.Error(err)
		}
	})
	again = func() *disk.Disk {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if d, err = store.Reopen(t.Context(), a.ID, first, size, a.Socket, os.Getuid()); err != nil {
			t.Fatal(err)
		}
		return d
	}
	return d, again, a
}

// content is what the disk holds, and changed which blocks of it have changed.
func content(t *testing.T, d *disk.Disk) (all []byte, changed map[int64]bool) {
	t.Helper()
	f, err := d.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	all = make([]byte, size)
	if _, err := f.ReadAt(all, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	changed = map[int64]bool{}
	for _, r := range f.Ranges() {
		for off := r.Off; off < r.Off+r.Len; off += block {
			changed[off] = true
		}
	}
	return all, changed
}

func firstContent() base {
	b := make(base, size)
	for i := range 1 << 20 {
		b[i] = byte(i>>12 + 1)
	}
	return b
}

// checkDisk attaches a disk, writes as a VMM does, and finds what was written behind the server, and only that.
func checkDisk(t *testing.T, disks firecracker.Disks) {
	first := firstContent()
	d, again, a := served(t, first)
	at, err := disks.Attach(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Detach(context.Background())
	f, err := os.OpenFile(at.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, first) {
		t.Fatalf("the disk is not what is served (%v)", err)
	}
	want := bytes.Clone(first)
	write := func(off int64, text string) {
		copy(want[off:], text)
		if _, err := f.WriteAt([]byte(text), off); err != nil {
			t.Fatal(err)
		}
	}
	write(8192, "hello")
	write(size-5, "world")
	write(100<<10, strings.Repeat("\x00", 4096))
	if err := at.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, changed := content(t, d); !bytes.Equal(all, want) || len(changed) != 4 && len(changed) != 3 || !changed[8192] || !changed[4<<20] {
		t.Errorf("behind the server is what was written: %v; changed are %v", bytes.Equal(all, want), changed)
	}
	// Another agent takes over, and what was changed before and after is found.
	write(12288, "before")
	if err := at.Close(); err != nil {
		t.Fatal(err)
	}
	d = again()
	if at, err = disks.Reattach(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	write(1<<20, "after")
	if err := at.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, _ := content(t, d); !bytes.Equal(all, want) {
		t.Error("behind the server is not what was written under two agents")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := at.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(a.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if e.Name() != "overlay" && e.Name() != "disk.sock" {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func TestACopyIsTheDiskAndChangesAreWrittenBack(t *testing.T) { checkDisk(t, Copies{}) }

func TestADeviceIsTheDisk(t *testing.T) {
	d, err := NewDevices()
	if err != nil {
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "kvm") {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	checkDisk(t, d)
}

func TestANoServerIsAnError(t *testing.T) {
	a := firecracker.Attachment{ID: "sb_1", Socket: filepath.Join(t.TempDir(), "none"), Dir: t.TempDir()}
	if _, err := (Copies{}).Attach(t.Context(), a); err == nil {
		t.Error("it is attached")
	}
	if left, _ := os.ReadDir(a.Dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}
