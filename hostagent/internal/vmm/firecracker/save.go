package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
)

const pageSize = 4096

// SaveState implements vmm.VM.
func (v *VM) SaveState(ctx context.Context, path string) error {
	err := v.Alone(ctx, func() error {
		if err := v.save(ctx); err != nil {
			return err
		}
		f, err := v.openOwn(stateName)
		if err != nil {
			return err
		}
		defer f.Close()
		return v.driver.writeState(path, &v.cfg, v.cpu, f)
	})
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// SaveDirty implements vmm.VM.
func (v *VM) SaveDirty(ctx context.Context, w vmm.DirtyWriter) (n int64, err error) {
	err = v.Alone(ctx, func() error {
		if err := v.save(ctx); err != nil {
			return err
		}
		f, err := v.openOwn(spoolName)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err = readSpool(ctx, f, v.cfg.MemoryBytes, w)
		return err
	})
	if err != nil {
		return n, fmt.Errorf("save memory: %w", err)
	}
	return n, nil
}

// save has Firecracker write state and dirty memory, unless what it wrote last is of the VM as it stands.
func (v *VM) save(ctx context.Context) error {
	var info api.InstanceInfo
	if err := v.do(ctx, request{method: "GET", path: "/"}, &info); err != nil {
		return err
	}
	if info.State != api.Paused {
		return vmm.ErrNotStopped
	}
	if v.saved {
		return nil
	}
	if err := v.checkSpool(); err != nil {
		return err
	}
	if v.disk != nil {
		if err := v.disk.Flush(ctx); err != nil {
			return fmt.Errorf("disk: %w", err)
		}
	}
	limit := v.driver.conf.SaveTime
	ctx, cancel := tether.Within(ctx, limit)
	defer cancel()
	body := api.SnapshotCreate{
		SnapshotType: api.Diff, SnapshotPath: filepath.Join(roomDir, stateName), MemFilePath: filepath.Join(roomDir, spoolName),
	}
	err := v.Explain(ctx, v.client.Do(ctx, "PUT", "/snapshot/create", body, nil, limit+v.driver.conf.HangTime))
	v.saved = err == nil
	return err
}

// checkSpool refuses a file system whose extents are larger than pages: what it adds to them would be taken for pages of zeros.
func (v *VM) checkSpool() error {
	var st unix.Stat_t
	if err := unix.Stat(ownDir(&v.cfg), &st); err != nil {
		return err
	}
	if st.Blksize > pageSize {
		return fmt.Errorf("the file system of %s has blocks of %d bytes, and dirty memory needs at most %d: use another directory, or mount it without huge pages",
			ownDir(&v.cfg), st.Blksize, pageSize)
	}
	return nil
}

// openOwn opens a file that the VMM has written, in a directory where it can put anything.
func (v *VM) openOwn(name string) (*os.File, error) {
	path := filepath.Join(ownDir(&v.cfg), name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != v.cfg.UID {
		unix.Close(fd)
		return nil, fmt.Errorf("%s is no file of the VMM's", path)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// readSpool hands over what a sparse file of so many bytes has.
func readSpool(ctx context.Context, f *os.File, size int64, w vmm.DirtyWriter) (n int64, err error) {
	if st, err := f.Stat(); err != nil || st.Size() != size {
		return 0, fmt.Errorf("memory of %d bytes was written, want %d (%v)", st.Size(), size, err)
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		start, end, err := extent(f, off, size)
		if err != nil {
			return n, fmt.Errorf("extents of %s: %w", f.Name(), err)
		}
		for off = start; off < end; {
			if err := context.Cause(ctx); err != nil {
				return n, err
			}
			p := buf[:min(int64(len(buf)), end-off)]
			if _, err := f.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
				return n, err
			}
			if err := w.WriteDirty(p, off); err != nil {
				return n, err
			}
			off += int64(len(p))
			n += int64(len(p))
		}
	}
	return n, nil
}

// extent finds the data at or after off, in whole pages; none: both are size.
func extent(f *os.File, off, size int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size, nil
	}
	if err != nil {
		return 0, 0, err
	}
	if end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
		return 0, 0, err
	}
	return start &^ (pageSize - 1), min(size, (end+pageSize-1)&^(pageSize-1)), nil
}
