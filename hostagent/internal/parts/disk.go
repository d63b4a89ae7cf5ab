package parts

import (
	"context"

	"github.com/coveyhq/covey/hostagent/internal/disk"
	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
)

// Disks implements machine.Disks with overlays over snapshots and images.
type Disks struct{ Store *disk.Store }

// sandboxDisk is a disk with what it lies over. It implements machine.Disk and snapstore.DiskFreezer.
type sandboxDisk struct {
	*disk.Disk
	base machine.Base
}

// Create implements machine.Disks.
func (d Disks) Create(ctx context.Context, id string, base machine.Base, size int64, socket string, uid int) (machine.Disk, error) {
	return d.open(ctx, d.Store.Create, id, base, size, socket, uid)
}

// Reopen implements machine.Disks.
func (d Disks) Reopen(ctx context.Context, id string, base machine.Base, size int64, socket string, uid int) (machine.Disk, error) {
	return d.open(ctx, d.Store.Reopen, id, base, size, socket, uid)
}

type opener func(ctx context.Context, id string, base disk.Base, size int64, socket string, uid int) (*disk.Disk, error)

func (Disks) open(ctx context.Context, open opener, id string, base machine.Base, size int64, socket string, uid int) (machine.Disk, error) {
	snap, err := snapshotOf(base)
	if err != nil {
		return nil, err
	}
	d, err := open(ctx, id, snap.Disk(), size, socket, uid)
	if err != nil {
		return nil, err
	}
	return &sandboxDisk{Disk: d, base: base}, nil
}

// Base implements snapstore.DiskFreezer.
func (d *sandboxDisk) Base() machine.Base { return d.base }

// Freeze implements snapstore.DiskFreezer.
func (d *sandboxDisk) Freeze(ctx context.Context) (snapstore.FrozenDisk, error) {
	f, err := d.Disk.Freeze(ctx)
	if err != nil {
		return nil, err
	}
	return frozenDisk{f}, nil
}

type frozenDisk struct{ *disk.Frozen }

func (f frozenDisk) Ranges() []snapstore.Range {
	ranges := f.Frozen.Ranges()
	list := make([]snapstore.Range, len(ranges))
	for i, r := range ranges {
		list[i] = snapstore.Range(r)
	}
	return list
}
