package vmmtest

import (
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/disk"
	"github.com/coveyhq/covey/hostagent/internal/pager"
)

// content is the bytes of a memory or a disk, in a sparse file that is nowhere but in memory. It serves as pager.Source and disk.Base.
type content struct {
	f    *os.File
	size int64
}

var (
	_ pager.Source = (*content)(nil)
	_ disk.Base    = (*content)(nil)
)

func newContent(t *testing.T, size int64) *content {
	t.Helper()
	fd, err := unix.MemfdCreate("vmmtest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	c := &content{os.NewFile(uintptr(fd), "content"), size}
	t.Cleanup(func() { c.f.Close() })
	if err := c.f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return c
}

// copyOf makes a content that begins with what another one has.
func copyOf(t *testing.T, from *content) *content {
	t.Helper()
	c := newContent(t, from.size)
	buf := make([]byte, 1<<20)
	for off := int64(0); off < c.size; {
		n, zero := from.Run(off)
		if zero {
			off += n
			continue
		}
		p := buf[:min(n, int64(len(buf)))]
		if _, err := from.f.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		if _, err := c.f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		off += int64(len(p))
	}
	return c
}

// Size implements pager.Source.
func (c *content) Size() int64 { return c.size }

// ReadAt implements pager.Source.
func (c *content) ReadAt(_ context.Context, p []byte, off int64) (string, error) {
	_, err := c.f.ReadAt(p, off)
	return "local", err
}

// Local implements pager.Local.
func (c *content) Local(_, _ int64) bool { return true }

// Run implements pager.Source.
func (c *content) Run(off int64) (int64, bool) {
	data, err := unix.Seek(int(c.f.Fd()), off, unix.SEEK_DATA)
	if err != nil {
		return c.size - off, true
	}
	if data > off {
		return data - off, true
	}
	hole, err := unix.Seek(int(c.f.Fd()), off, unix.SEEK_HOLE)
	if err != nil {
		hole = c.size
	}
	return hole - off, false
}

// WriteDirty implements vmm.DirtyWriter.
func (c *content) WriteDirty(p []byte, off int64) error {
	_, err := c.f.WriteAt(p, off)
	return err
}

// snapshot is a VM's state, memory and disk of one instant.
type snapshot struct {
	name   string
	state  string
	memory *content
	disk   *content
	vcpus  int
	// dirty is how many bytes of memory had changed.
	dirty int64
}
