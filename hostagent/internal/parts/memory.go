package parts

import (
	"context"
	"fmt"
	"os"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
)

// Memories implements machine.Memories with the pager.
type Memories struct {
	Cache *pager.Cache
	// Private tells that the VMM maps images privately. Of one that does not, a VM that was booted has no userfaultfd to take back.
	Private bool
}

// memory is one VM's session with the image that it holds. It implements machine.Memory and snapstore.MemoryDrafter.
type memory struct {
	*pager.Session
	cache *pager.Cache
	image *pager.Image
	base  machine.Base // nil for memory that began as zeros
}

// Open implements machine.Memories.
func (m Memories) Open(ctx context.Context, id string, base machine.Base, size int64, socket string, uid int) (machine.Memory, error) {
	return m.attach(base, size, func(img *pager.Image) (*pager.Session, error) { return m.Cache.Serve(ctx, id, img, socket, uid) })
}

// Reopen implements machine.Memories.
func (m Memories) Reopen(ctx context.Context, id string, base machine.Base, size int64, socket string, uid, pid int) (machine.Memory, error) {
	if base == nil && !m.Private {
		return m.Open(ctx, id, base, size, socket, uid)
	}
	return m.attach(base, size, func(img *pager.Image) (*pager.Session, error) {
		return m.Cache.TakeBack(ctx, id, img, socket, uid, pid)
	})
}

func (m Memories) attach(base machine.Base, size int64, session func(*pager.Image) (*pager.Session, error)) (machine.Memory, error) {
	img, err := m.image(base, size)
	if err != nil {
		return nil, err
	}
	s, err := session(img)
	if err != nil {
		img.Release()
		return nil, err
	}
	return &memory{Session: s, cache: m.Cache, image: img, base: base}, nil
}

func (m Memories) image(base machine.Base, size int64) (*pager.Image, error) {
	if base == nil {
		return m.Cache.Zeros(size)
	}
	snap, err := snapshotOf(base)
	if err != nil {
		return nil, err
	}
	return m.Cache.Open(base.Manifest().ID, snap.Memory(), snap.WorkingSet())
}

func snapshotOf(base machine.Base) (*snapstore.Snapshot, error) {
	snap, ok := base.(*snapstore.Snapshot)
	if !ok {
		return nil, fmt.Errorf("%T is not from the snapshot store", base)
	}
	return snap, nil
}

// File implements machine.Memory.
func (m *memory) File() *os.File { return m.image.File() }

// Sources implements machine.Memory.
func (m *memory) Sources() []machine.PageSource {
	var list []machine.PageSource
	for _, s := range m.Session.Sources() {
		list = append(list, machine.PageSource{Source: s.Source, Pages: s.Pages, Bytes: s.Bytes})
	}
	return list
}

// Close implements machine.Memory.
func (m *memory) Close(ctx context.Context) error {
	defer m.image.Release()
	return m.Session.Close(ctx)
}

// Base implements snapstore.MemoryDrafter.
func (m *memory) Base() machine.Base { return m.base }

// BeginDraft implements snapstore.MemoryDrafter.
func (m *memory) BeginDraft(snapshotID string, size int64) (snapstore.MemoryDraft, error) {
	d, err := m.cache.BeginDraft(snapshotID, size)
	if err != nil {
		return nil, err
	}
	return memoryDraft{d}, nil
}

type memoryDraft struct{ *pager.Draft }

func (d memoryDraft) Ranges() []snapstore.Range {
	ranges := d.Draft.Ranges()
	list := make([]snapstore.Range, len(ranges))
	for i, r := range ranges {
		list[i] = snapstore.Range(r)
	}
	return list
}

func (d memoryDraft) Commit(v *snapstore.View) error {
	if err := d.Draft.Commit(v); err != nil {
		return err
	}
	return d.Draft.Close()
}
