// Package freeze keeps a filesystem still while its disk is copied, and never for longer than was agreed.
package freeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrFrozen: the filesystem is frozen already.
var ErrFrozen = errors.New("the filesystem is frozen already")

// FIFREEZE and FITHAW of linux/fs.h: _IOWR('X', 119 and 120, int).
const (
	fifreeze = 0xc0045877
	fithaw   = 0xc0045878
)

// Filesystem is a mounted filesystem that can be frozen.
type Filesystem struct {
	dir *os.File

	mu     sync.Mutex
	frozen bool        // guarded by mu
	thaw   *time.Timer // thaws by itself; guarded by mu
}

// Open prepares the filesystem that a directory is on. The descriptor is opened now: while it is frozen, nothing is to be looked for.
func Open(path string) (*Filesystem, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &Filesystem{dir: dir}, nil
}

// Sync writes what the page cache holds of the filesystem to its disk.
func (f *Filesystem) Sync() error {
	if err := unix.Syncfs(int(f.dir.Fd())); err != nil {
		return fmt.Errorf("syncfs: %w", err)
	}
	return nil
}

// Freeze syncs the filesystem and holds all writes until Thaw or until limit has passed.
func (f *Filesystem) Freeze(ctx context.Context, limit time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen {
		return ErrFrozen
	}
	if err := f.ioctl(fifreeze); err != nil {
		return fmt.Errorf("FIFREEZE: %w", err)
	}
	f.frozen = true
	f.thaw = time.AfterFunc(limit, func() { _ = f.Thaw() })
	if ctx.Err() != nil { // who asked is gone and would never thaw
		return errors.Join(context.Cause(ctx), f.thawLocked())
	}
	return nil
}

// Thaw lets writes go on. What is not frozen stays as it is.
func (f *Filesystem) Thaw() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.thawLocked()
}

func (f *Filesystem) thawLocked() error {
	if !f.frozen {
		return nil
	}
	f.thaw.Stop()
	f.frozen = false
	if err := f.ioctl(fithaw); err != nil && err != unix.EINVAL { // EINVAL: something else thawed it
		return fmt.Errorf("FITHAW: %w", err)
	}
	return nil
}

func (f *Filesystem) ioctl(request uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.dir.Fd(), request, 0); errno != 0 {
		return errno
	}
	return nil
}

// Close thaws and lets go.
func (f *Filesystem) Close() error { return errors.Join(f.Thaw(), f.dir.Close()) }
