package disk

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
)

// origin tells where the content of blocks comes from.
type origin struct {
	layer *layer // nil for the base
	state byte
}

// origin tells where block b comes from, and how many blocks from b on, up to end, come from there too.
func (s stack) origin(b, end int64) (o origin, n int64) {
	o = s.of(b)
	for n = 1; b+n < end; n++ {
		if o.state == below {
			// Most of a disk was never written: eight blocks at a time.
			n += s.untouched(b+n, end)
			if b+n >= end {
				break
			}
		}
		if s.of(b+n) != o {
			break
		}
	}
	return o, n
}

func (s stack) of(b int64) origin {
	for i := len(s) - 1; i >= 0; i-- {
		if v := s[i].state[b]; v != below {
			return origin{s[i], v}
		}
	}
	return origin{}
}

// untouched counts blocks from b on that no layer has, in steps of eight.
func (s stack) untouched(b, end int64) (n int64) {
	for ; b+n+8 <= end; n += 8 {
		for _, l := range s {
			if binary.NativeEndian.Uint64(l.state[b+n:]) != 0 {
				return n
			}
		}
	}
	return n
}

// ReadAt implements nbd.Export.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	s, err := d.acquire()
	if err != nil {
		return err
	}
	defer d.release(s)
	return d.read(ctx, s, p, off)
}

// readFull reads as an io.ReaderAt does.
func (d *Disk) readFull(ctx context.Context, s stack, p []byte, off int64) (int, error) {
	var end error
	if off < 0 {
		return 0, fmt.Errorf("disk %s: read at %d", d.id, off)
	}
	if off >= d.size {
		return 0, io.EOF
	}
	if int64(len(p)) > d.size-off {
		p, end = p[:d.size-off], io.EOF
	}
	if err := d.read(ctx, s, p, off); err != nil {
		return 0, fmt.Errorf("disk %s: %w", d.id, err)
	}
	return len(p), end
}

// read fills p with what the layers and the base have at off.
func (d *Disk) read(ctx context.Context, s stack, p []byte, off int64) error {
	end := (off + int64(len(p)) + BlockSize - 1) / BlockSize
	for len(p) > 0 {
		b := off / BlockSize
		o, blocks := s.origin(b, end)
		n := min((b+blocks)*BlockSize-off, int64(len(p)))
		var err error
		switch o.state {
		case below:
			err = d.readBase(ctx, p[:n], off)
		case zeros:
			clear(p[:n])
		case inData:
			_, err = o.layer.data.ReadAt(p[:n], off)
		}
		if err != nil {
			return fmt.Errorf("reading %d bytes at %d: %w", n, off, err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readBase reads from the base, which takes whole blocks only; beyond its end are zeros.
func (d *Disk) readBase(ctx context.Context, p []byte, off int64) error {
	if beyond := off + int64(len(p)) - d.base.Size(); beyond > 0 {
		keep := max(0, int64(len(p))-beyond)
		clear(p[keep:])
		p = p[:keep]
	}
	for len(p) > 0 {
		within := off % BlockSize
		if n := int64(len(p)) &^ (BlockSize - 1); within == 0 && n > 0 {
			if _, err := d.base.ReadAt(ctx, p[:n], off); err != nil {
				return err
			}
			p, off = p[n:], off+n
			continue
		}
		var block [BlockSize]byte
		if _, err := d.base.ReadAt(ctx, block[:], off-within); err != nil {
			return err
		}
		n := copy(p, block[within:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// change calls do with the layers and blocks [from, to) that p at off touches, locked against other writers and Freeze.
func (d *Disk) change(off, n int64, do func(s stack) error) error {
	if n == 0 {
		return nil
	}
	d.gate.RLock()
	defer d.gate.RUnlock()
	s, err := d.acquire()
	if err != nil {
		return err
	}
	defer d.release(s)
	defer d.locks.lock(off/BlockSize, (off+n+BlockSize-1)/BlockSize)()
	return do(s)
}

// parts splits a range into the whole blocks in it and what stands before and after them in a block.
func parts(off, n int64) (head, whole, tail int64) {
	head = min(n, -off&(BlockSize-1))
	whole = (n - head) &^ (BlockSize - 1)
	return head, whole, n - head - whole
}

// WriteAt implements nbd.Export.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.change(off, int64(len(p)), func(s stack) error {
		head, whole, _ := parts(off, int64(len(p)))
		if err := d.patch(ctx, s, p[:head], off); err != nil {
			return err
		}
		if err := s.top().write(p[head:head+whole], off+head); err != nil {
			return err
		}
		return d.patch(ctx, s, p[head+whole:], off+head+whole)
	})
}

// Zero implements nbd.Export.
func (d *Disk) Zero(ctx context.Context, off, n int64) error {
	return d.change(off, n, func(s stack) error {
		var none [BlockSize]byte
		head, whole, tail := parts(off, n)
		if err := d.patch(ctx, s, none[:head], off); err != nil {
			return err
		}
		if err := s.top().setZero((off+head)/BlockSize, (off+head+whole)/BlockSize); err != nil {
			return err
		}
		return d.patch(ctx, s, none[:tail], off+head+whole)
	})
}

// Trim implements nbd.Export: whole blocks become zeros, parts of blocks stay.
func (d *Disk) Trim(_ context.Context, off, n int64) error {
	return d.change(off, n, func(s stack) error {
		head, whole, _ := parts(off, n)
		return s.top().setZero((off+head)/BlockSize, (off+head+whole)/BlockSize)
	})
}

// write writes whole blocks.
func (l *layer) write(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if _, err := l.data.WriteAt(p, off); err != nil {
		return err
	}
	l.fill(off/BlockSize, (off+int64(len(p)))/BlockSize, inData)
	return nil
}

// patch writes a part of one block; if the top lacks the block, it first gets the rest of it from below.
func (d *Disk) patch(ctx context.Context, s stack, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if s.top().state[off/BlockSize] == inData {
		_, err := s.top().data.WriteAt(p, off)
		return err
	}
	within := off % BlockSize
	var block [BlockSize]byte
	if err := d.read(ctx, s, block[:], off-within); err != nil {
		return err
	}
	copy(block[within:], p)
	return s.top().write(block[:], off-within)
}
