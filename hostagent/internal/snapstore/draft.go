package snapstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// Range is a part of an address space that has changed: all zeros, or data. Offsets are multiples of BlockSize; ranges ascend and
// never overlap.
type Range struct {
	Off, Len int64
	Zero     bool
}

// MemoryDrafter is what a machine.Memory has to be for a snapshot of it to be made.
type MemoryDrafter interface {
	// Base is the snapshot that the memory came from, as Open returned it; nil for one that began as zeros.
	Base() machine.Base
	// BeginDraft makes the page-cache file of a new snapshot.
	BeginDraft(snapshotID string, size int64) (MemoryDraft, error)
	// WorkingSet lists offsets in memory in the order in which they were first needed.
	WorkingSet() []int64
}

// MemoryDraft takes the dirty memory of a snapshot in the making.
type MemoryDraft interface {
	vmm.DirtyWriter
	Ranges() []Range
	ReadAt(p []byte, off int64) (int, error)
	// Commit makes it the page cache of the new snapshot, whose memory is given. It is the last call, if Abort is not.
	Commit(memory *View) error
	Abort() error
}

// DiskFreezer is what a machine.Disk has to be for a snapshot of it to be made.
type DiskFreezer interface {
	// Base is the snapshot or image that the disk lies over, as Open or OpenImage returned it.
	Base() machine.Base
	// Freeze holds on to the content of this instant.
	Freeze(ctx context.Context) (FrozenDisk, error)
}

// FrozenDisk is a disk as it was.
type FrozenDisk interface {
	// Ranges is everything that differs from the base.
	Ranges() []Range
	ReadAt(p []byte, off int64) (int, error)
	Release() error
}

// draft implements machine.Draft.
type draft struct {
	store    *Store
	manifest machine.Manifest
	// dir is its directory; what is to become the snapshot's lies in dir/entry.
	dir string

	memory     MemoryDrafter
	disk       DiskFreezer
	memoryBase *Snapshot // nil for memory that began as zeros
	diskBase   *Snapshot

	memoryDraft MemoryDraft
	frozen      FrozenDisk
	dirty       atomic.Int64 // bytes that WriteDirty took
	ended       bool
}

// Draft begins a snapshot. memory must be a MemoryDrafter and disk a DiskFreezer.
func (s *Store) Draft(_ context.Context, m machine.Manifest, memory machine.Memory, disk machine.Disk) (_ machine.Draft, err error) {
	d := &draft{store: s, manifest: m}
	var ok bool
	if d.memory, ok = memory.(MemoryDrafter); !ok {
		return nil, fmt.Errorf("memory of type %T cannot be saved", memory)
	}
	if d.disk, ok = disk.(DiskFreezer); !ok {
		return nil, fmt.Errorf("a disk of type %T cannot be saved", disk)
	}
	if err := s.claim(m.ID); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.end())
		}
	}()
	if err := d.pinBases(); err != nil {
		return nil, err
	}
	if d.dir, err = s.tempDir(m.ID); err != nil {
		return nil, err
	}
	if err := os.Mkdir(d.entry(), 0o700); err != nil {
		return nil, err
	}
	d.memoryDraft, err = d.memory.BeginDraft(m.ID, m.MemoryBytes)
	return d, err
}

// claim reserves the id of a snapshot that does not exist.
func (s *Store) claim(id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("a snapshot id must be letters, digits and underscores, at most 64, got %.80q", id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.snaps[id] != nil:
		return fmt.Errorf("snapshot %s is on this host already", id)
	case s.drafts[id]:
		return fmt.Errorf("snapshot %s is being made already", id)
	}
	s.drafts[id] = true
	return nil
}

func (d *draft) pinBases() error {
	if base := d.memory.Base(); base != nil {
		b, ok := base.(*Snapshot)
		if !ok || b.Memory() == nil || b.Memory().Size() != d.manifest.MemoryBytes {
			return fmt.Errorf("the memory's base of type %T is not a snapshot with %d bytes of memory", base, d.manifest.MemoryBytes)
		}
		d.memoryBase = b.again()
	}
	b, ok := d.disk.Base().(*Snapshot)
	if !ok || b.Disk().Size() > d.manifest.DiskBytes {
		return fmt.Errorf("the disk's base of type %T is not a snapshot or image with a disk of at most %d bytes", d.disk.Base(), d.manifest.DiskBytes)
	}
	d.diskBase = b.again()
	return nil
}

func (d *draft) entry() string { return filepath.Join(d.dir, "entry") }

// StatePath is where the device state is to be written.
func (d *draft) StatePath() string { return filepath.Join(d.entry(), stateName) }

// WriteDirty takes dirty memory.
func (d *draft) WriteDirty(p []byte, off int64) error {
	if err := d.memoryDraft.WriteDirty(p, off); err != nil {
		return err
	}
	d.dirty.Add(int64(len(p)))
	return nil
}

// TakeDisk holds on to the disk's content of this instant.
func (d *draft) TakeDisk(ctx context.Context) (err error) {
	if d.frozen != nil {
		return errors.New("the disk was taken before")
	}
	d.frozen, err = d.disk.Freeze(ctx)
	return err
}

// Abort removes what there is of it; after Commit it does nothing.
func (d *draft) Abort(context.Context) error {
	if d.ended {
		return nil
	}
	return errors.Join(d.memoryDraftAbort(), d.end())
}

func (d *draft) memoryDraftAbort() error {
	if d.memoryDraft == nil {
		return nil
	}
	return d.memoryDraft.Abort()
}

// end gives everything back, except the memory's draft.
func (d *draft) end() error {
	d.ended = true
	var errs []error
	if d.frozen != nil {
		errs = append(errs, d.frozen.Release())
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	if d.memoryBase != nil {
		d.memoryBase.Release()
	}
	if d.diskBase != nil {
		d.diskBase.Release()
	}
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	delete(d.store.drafts, d.manifest.ID)
	return errors.Join(errs...)
}
