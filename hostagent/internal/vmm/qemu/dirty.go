package qemu

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// SaveDirty implements vmm.VM.
func (v *VM) SaveDirty(ctx context.Context, w vmm.DirtyWriter) (int64, error) {
	if v.cfg.PagerSocket == "" {
		return 0, fmt.Errorf("save memory: %w without a pager", vmm.ErrUnsupported)
	}
	var n int64
	err := v.Alone(ctx, func() error {
		if _, err := v.stopped(ctx); err != nil {
			return err
		}
		b := &batch{ctx: ctx, pid: v.Process().PID(), w: w}
		err := v.eachDirty(b.add)
		if err == nil {
			err = b.flush()
		}
		n = b.written
		if err != nil && v.Ended(ctx, err) {
			return v.Gone()
		}
		return err
	})
	if err != nil {
		return n, fmt.Errorf("save memory: %w", err)
	}
	return n, nil
}

// eachDirty calls fn for each range of dirty memory: at addr in the process, at off in the image.
func (v *VM) eachDirty(fn func(addr uint64, off, length int64) error) error {
	regions, err := pager.FindMapping(v.Process().PID(), v.cfg.Memory)
	if err != nil {
		return err
	}
	total := uint64(0)
	for _, r := range regions {
		total += r.Size
		err := pager.DirtyPages(v.Process().PID(), r.Base, r.Size, func(off, length int64) error {
			return fn(r.Base+uint64(off), int64(r.Offset)+off, length)
		})
		if err != nil {
			return err
		}
	}
	if total != uint64(v.cfg.MemoryBytes) {
		return fmt.Errorf("process %d maps %d bytes of its memory image privately, want %d", v.Process().PID(), total, v.cfg.MemoryBytes)
	}
	return nil
}

// batch reads dirty ranges, many with each system call, and hands them over.
type batch struct {
	ctx     context.Context
	pid     int
	w       vmm.DirtyWriter
	buf     []byte
	remote  []unix.RemoteIovec
	offs    []int64
	used    int
	written int64
}

const (
	batchBytes  = 4 << 20
	batchRanges = 512 // the kernel takes 1024 at most
)

func (b *batch) add(addr uint64, off, length int64) error {
	if b.buf == nil {
		b.buf = make([]byte, batchBytes)
	}
	for length > 0 {
		if b.used == len(b.buf) || len(b.offs) == batchRanges {
			if err := b.flush(); err != nil {
				return err
			}
		}
		n := min(length, int64(len(b.buf)-b.used))
		b.remote = append(b.remote, unix.RemoteIovec{Base: uintptr(addr), Len: int(n)})
		b.offs = append(b.offs, off)
		b.used += int(n)
		addr, off, length = addr+uint64(n), off+n, length-n
	}
	return nil
}

func (b *batch) flush() error {
	if b.used == 0 {
		return nil
	}
	if err := context.Cause(b.ctx); err != nil {
		return err
	}
	local := []unix.Iovec{{Base: &b.buf[0], Len: uint64(b.used)}}
	n, err := unix.ProcessVMReadv(b.pid, local, b.remote, 0)
	if err == nil && n != b.used {
		err = fmt.Errorf("got %d bytes of %d", n, b.used)
	}
	if err != nil {
		return fmt.Errorf("read memory of process %d: %w", b.pid, err)
	}
	at := 0
	for i, r := range b.remote {
		if err := b.w.WriteDirty(b.buf[at:at+r.Len], b.offs[i]); err != nil {
			return err
		}
		at += r.Len
	}
	b.written += int64(at)
	b.remote, b.offs, b.used = b.remote[:0], b.offs[:0], 0
	return nil
}

// PrivateBytes implements vmm.VM. It counts dirty pages; without a pager, all that the process has to itself.
func (v *VM) PrivateBytes() (int64, error) {
	return v.Measure(func() (n int64, err error) {
		if v.cfg.PagerSocket == "" {
			return v.Process().AnonymousBytes()
		}
		err = v.eachDirty(func(_ uint64, _, length int64) error {
			n += length
			return nil
		})
		return n, err
	})
}
