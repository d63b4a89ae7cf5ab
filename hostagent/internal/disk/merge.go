package disk

import (
	"context"
	"errors"
	"slices"
)

// mergeChunk is how much a merge copies at once, bytes.
const mergeChunk = 256 << 10

// kickMerge has layers merged in the background, if there are any to merge.
func (d *Disk) kickMerge() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.merging || d.ended || d.mergeable() < 0 {
		return
	}
	d.merging = true
	d.wg.Go(d.mergeAll)
}

// mergeable finds the lowest layer that can be merged into the one below it, -1 if there is none. Callers hold mu.
//
// Neither may be the top of a Frozen. A Frozen that has both, or one of them below its top, does not see the difference: the
// blocks that are copied into the lower one are hidden by the upper one, which it keeps. The lowest first, so that a block is
// copied once.
func (d *Disk) mergeable() int {
	for i := 1; i < len(d.stack)-1; i++ {
		if d.stack[i-1].pins == 0 && d.stack[i].pins == 0 {
			return i
		}
	}
	return -1
}

func (d *Disk) mergeAll() {
	for {
		d.mu.Lock()
		i := d.mergeable()
		if i < 0 || d.ended {
			d.merging = false
			d.mu.Unlock()
			return
		}
		lower, upper := d.stack[i-1], d.stack[i]
		d.mu.Unlock()
		err := merge(d.ctx, lower, upper)
		if err == nil {
			err = d.takeOut(upper)
		}
		if err != nil {
			d.mu.Lock()
			d.merging = false
			d.mu.Unlock()
			// The layers stay as they are, which is right and only slower; the next Release tries again.
			if !errors.Is(err, context.Canceled) {
				d.log.Warn("layers of the overlay could not be merged", "error", err)
			}
			return
		}
	}
}

// merge copies the blocks of upper into lower. It may be stopped anywhere, and repeated.
func merge(ctx context.Context, lower, upper *layer) error {
	buf := make([]byte, mergeChunk)
	one, end := stack{upper}, int64(len(upper.state))
	for b := int64(0); b < end; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		o, n := one.origin(b, end)
		switch o.state {
		case zeros:
			if err := lower.setZero(b, b+n); err != nil {
				return err
			}
		case inData:
			n = min(n, mergeChunk/BlockSize)
			p := buf[:n*BlockSize]
			if _, err := upper.data.ReadAt(p, b*BlockSize); err != nil {
				return err
			}
			if err := lower.write(p, b*BlockSize); err != nil {
				return err
			}
		}
		b += n
	}
	return nil
}

// takeOut takes a merged layer out of the stack and removes its files; who still reads it keeps it open.
func (d *Disk) takeOut(l *layer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(d.stack), func(o *layer) bool { return o == l })
	return errors.Join(l.remove(), d.exchange(rest))
}
