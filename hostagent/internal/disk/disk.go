package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/coveyhq/covey/hostagent/internal/disk/nbd"
)

// Disk is one sandbox's disk, served until Close or Discard. It is safe for concurrent use.
type Disk struct {
	store  *Store
	id     string
	base   Base
	size   int64
	log    *slog.Logger
	server *nbd.Server
	locks  *blockLocks
	// gate is held for reading by whatever writes the top, and for writing when the top is exchanged.
	gate sync.RWMutex

	// ctx ends with the disk; it bounds reads of the base and the merger.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // the merger

	mu      sync.Mutex // guards the fields below and the counters of layers
	stack   stack
	merging bool
	ended   bool
}

// stack is the layers of a disk, the lowest first. It is never changed: another takes its place.
type stack []*layer

func (s stack) top() *layer { return s[len(s)-1] }

func newDisk(s *Store, id string, base Base, size int64, layers []*layer) *Disk {
	d := &Disk{store: s, id: id, base: base, size: size, log: s.log.With("disk", id), locks: newBlockLocks()}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.use(layers)
	return d
}

// Size implements nbd.Export.
func (d *Disk) Size() int64 { return d.size }

// OverlayBytes is what the overlay takes on the host.
func (d *Disk) OverlayBytes() (n int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.stack {
		b, err := l.bytes()
		if err != nil {
			return 0, fmt.Errorf("disk %s: %w", d.id, err)
		}
		n += b
	}
	return n, nil
}

// Close ends serving; the overlay stays for Reopen. What Freeze has returned can still be read, and must be released.
func (d *Disk) Close() error {
	err := d.end()
	d.store.forget(d.id)
	return err
}

// Discard ends serving and removes the overlay. What Freeze has returned can still be read, and must be released.
func (d *Disk) Discard(context.Context) error {
	err := d.end()
	err = errors.Join(err, d.store.removeFiles(d.id))
	d.store.forget(d.id)
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.id, err)
	}
	return nil
}

// end stops everything of the disk; the second time it does nothing.
func (d *Disk) end() (err error) {
	d.mu.Lock()
	again := d.ended
	d.ended = true
	d.mu.Unlock()
	d.cancel()
	if d.server != nil {
		err = d.server.Close()
	}
	d.wg.Wait()
	if again {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(err, d.exchange(nil))
}

// acquire returns the layers as they are now, which stay open until release.
func (d *Disk) acquire() (stack, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stack == nil {
		return nil, fmt.Errorf("disk %s is closed", d.id)
	}
	for _, l := range d.stack {
		l.refs++
	}
	return d.stack, nil
}

func (d *Disk) release(s stack) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.drop(s); err != nil {
		d.log.Error("a layer could not be closed", "error", err)
	}
}

// use makes s the disk's layers. Callers hold mu.
func (d *Disk) use(s stack) {
	for _, l := range s {
		l.refs++
	}
	d.stack = s
}

// exchange makes s the disk's layers in place of those of before. Callers hold mu.
func (d *Disk) exchange(s stack) error {
	old := d.stack
	d.use(s)
	return d.drop(old)
}

// drop gives layers back and closes those that nobody uses. Callers hold mu.
func (d *Disk) drop(s stack) (err error) {
	for _, l := range s {
		if l.refs--; l.refs == 0 {
			err = errors.Join(err, l.close())
		}
	}
	return err
}

// Range is a run of blocks that has changed, in bytes.
type Range struct {
	Off, Len int64
	// Zero: it is all zeros now.
	Zero bool
}

// Frozen is a disk as it was at one instant. It is safe for concurrent use, until Release.
type Frozen struct {
	disk     *Disk
	stack    stack
	released sync.Once
}

// Freeze holds on to the content of this instant, for which the VM is stopped: what was answered is in it, what is in flight
// may be. The disk is written on, in a new layer.
func (d *Disk) Freeze(ctx context.Context) (*Frozen, error) {
	d.gate.Lock()
	defer d.gate.Unlock()
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.id, err)
	}
	old, err := d.acquire()
	if err != nil {
		return nil, err
	}
	top, err := createLayer(d.store.dir, d.id, old.top().number+1, d.size)
	if err != nil {
		d.release(old)
		return nil, fmt.Errorf("disk %s: %w", d.id, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return nil, errors.Join(fmt.Errorf("disk %s is closed", d.id), top.close(), top.remove(), d.drop(old))
	}
	// The merger may have taken layers out meanwhile; the top is never among them.
	old.top().pins++
	return &Frozen{disk: d, stack: old}, d.exchange(append(slices.Clone(d.stack), top))
}

// Ranges tells all that has changed against the base, ascending; neighbours that are alike are one.
func (f *Frozen) Ranges() []Range {
	var list []Range
	blocks := f.disk.size / BlockSize
	for b := int64(0); b < blocks; {
		o, n := f.stack.origin(b, blocks)
		if o.state != below {
			list = appendRange(list, Range{Off: b * BlockSize, Len: n * BlockSize, Zero: o.state == zeros})
		}
		b += n
	}
	return list
}

func appendRange(list []Range, r Range) []Range {
	if i := len(list) - 1; i >= 0 && list[i].Off+list[i].Len == r.Off && list[i].Zero == r.Zero {
		list[i].Len += r.Len
		return list
	}
	return append(list, r)
}

// ReadAt reads the frozen content as an io.ReaderAt. Once the disk has ended, only what Ranges tells can be read.
func (f *Frozen) ReadAt(p []byte, off int64) (int, error) {
	return f.disk.readFull(f.disk.ctx, f.stack, p, off)
}

// Release lets go of the content. The second time it does nothing.
func (f *Frozen) Release() error {
	var err error
	f.released.Do(func() {
		d := f.disk
		d.mu.Lock()
		f.stack.top().pins--
		err = d.drop(f.stack)
		d.mu.Unlock()
		d.kickMerge()
	})
	return err
}
