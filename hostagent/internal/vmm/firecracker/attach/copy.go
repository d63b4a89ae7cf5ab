package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"path/filepath"
	"sync"

	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
)

const (
	block    = 4096
	chunk    = 64 << 10
	copyName = "disk.copy"
)

// Copies implements firecracker.Disks with files.
type Copies struct{}

var _ firecracker.Disks = Copies{}

// Attach implements firecracker.Disks.
func (Copies) Attach(ctx context.Context, a firecracker.Attachment) (firecracker.Disk, error) {
	d := &copied{path: filepath.Join(a.Dir, copyName), socket: a.Socket, seed: maphash.MakeSeed()}
	if err := d.fetch(ctx, a.UID, a.GID); err != nil {
		return nil, errors.Join(fmt.Errorf("copy the disk of %s: %w", a.ID, err), removeIfThere(d.path))
	}
	return d, nil
}

// Reattach implements firecracker.Disks.
func (Copies) Reattach(_ context.Context, a firecracker.Attachment) (firecracker.Disk, error) {
	d := &copied{path: filepath.Join(a.Dir, copyName), socket: a.Socket, seed: maphash.MakeSeed()}
	if _, err := os.Stat(d.path); err != nil {
		return nil, fmt.Errorf("the copy of the disk of %s: %w", a.ID, err)
	}
	return d, nil
}

// copied is a disk as a file. It implements firecracker.Disk.
type copied struct {
	path, socket string
	seed         maphash.Seed

	mu sync.Mutex // serialises Flush; guards sums
	// sums are of the chunks as the server has them; nil after a change of agents, when nothing is known.
	sums []uint64
}

// Path implements firecracker.Disk.
func (d *copied) Path() string { return d.path }

// Close implements firecracker.Disk.
func (d *copied) Close() error { return nil }

// Detach implements firecracker.Disk.
func (d *copied) Detach(context.Context) error { return removeIfThere(d.path) }

// fetch makes the file; zeros take no space.
func (d *copied) fetch(ctx context.Context, uid, gid int) error {
	c, err := connect(ctx, d.socket)
	if err != nil {
		return err
	}
	defer c.close()
	f, err := os.OpenFile(d.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(c.size), f.Chown(uid, gid)); err != nil {
		return err
	}
	buf := make([]byte, maxTransfer)
	for off := int64(0); off < c.size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), c.size-off)]
		if err := c.do(ctx, cmdRead, off, buf); err != nil {
			return err
		}
		for at := 0; at < len(buf); at += chunk {
			part := buf[at:min(at+chunk, len(buf))]
			d.sums = append(d.sums, maphash.Bytes(d.seed, part))
			if zero(part) {
				continue
			}
			if _, err := f.WriteAt(part, off+int64(at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Flush implements firecracker.Disk: it writes what the guest has changed to the server.
func (d *copied) Flush(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := connect(ctx, d.socket)
	if err != nil {
		return err
	}
	defer c.close()
	sums, err := d.writeBack(ctx, f, c)
	if err == nil {
		err = c.do(ctx, cmdFlush, 0, nil)
	}
	if err != nil {
		return fmt.Errorf("write the copy of a disk back: %w", err)
	}
	d.sums = sums
	return nil
}

func (d *copied) writeBack(ctx context.Context, f *os.File, c *client) (sums []uint64, err error) {
	mine, theirs := make([]byte, chunk), make([]byte, chunk)
	for off, i := int64(0), 0; off < c.size; off, i = off+chunk, i+1 {
		n := min(chunk, c.size-off)
		mine, theirs = mine[:n], theirs[:n]
		if _, err := f.ReadAt(mine, off); err != nil {
			return nil, err
		}
		sum := maphash.Bytes(d.seed, mine)
		sums = append(sums, sum)
		if i < len(d.sums) && d.sums[i] == sum {
			continue
		}
		if err := c.do(ctx, cmdRead, off, theirs); err != nil {
			return nil, err
		}
		for at := int64(0); at < n; at += block {
			end := min(at+block, n)
			if bytes.Equal(mine[at:end], theirs[at:end]) {
				continue
			}
			if err := c.do(ctx, cmdWrite, off+at, mine[at:end]); err != nil {
				return nil, err
			}
		}
	}
	return sums, nil
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
