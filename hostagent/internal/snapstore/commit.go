package snapstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// lineage is one of the two address spaces of a snapshot in the making.
type lineage struct {
	kind   buildfmt.Kind
	parent *snapfmt.Header
	// builds that the parent names.
	builds []Build
	ranges []Range
	source interface {
		ReadAt(p []byte, off int64) (int, error)
	}
	packed *packed
	header *snapfmt.Header
	object Object
}

// Commit makes the snapshot safe on this host's disk. After an error the draft can only be aborted.
func (d *draft) Commit(ctx context.Context) (machine.Manifest, machine.SaveStats, error) {
	man, stats, err := d.commit(ctx)
	if err != nil {
		return machine.Manifest{}, machine.SaveStats{}, err
	}
	if err := d.end(); err != nil {
		// The snapshot exists; what is left is swept at the next start.
		d.store.log.Warn("what a snapshot was made with could not be freed", "snapshot_id", man.ID, "error", err)
	}
	return man, stats, nil
}

func (d *draft) commit(ctx context.Context) (man machine.Manifest, stats machine.SaveStats, err error) {
	if d.ended || d.frozen == nil {
		return man, stats, errors.New("only a draft whose disk was taken, and that has not ended, can be committed")
	}
	memory, disk, err := d.lineages(ctx)
	if err != nil {
		return man, stats, err
	}
	r := &Record{Manifest: d.manifest}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.build(gctx, memory, memoryName) })
	g.Go(func() error { return d.build(gctx, disk, diskName) })
	g.Go(func() (err error) {
		r.State, err = hashFile(gctx, d.StatePath(), snapshotKey(d.manifest.ID, stateName), maxState)
		return err
	})
	if err := g.Wait(); err != nil {
		return man, stats, err
	}
	if err := d.record(r, memory, disk); err != nil {
		return man, stats, err
	}
	e, err := d.publish(ctx, r, memory, disk)
	if err != nil {
		return man, stats, err
	}
	d.hand(e, memory)
	d.store.worker.consider(e, memory.header, disk.header)
	stats = machine.SaveStats{
		MemoryDirty: d.dirty.Load(), MemoryWritten: memory.packed.info.Size, DiskDirty: lengthOf(disk.ranges), DiskWritten: disk.packed.info.Size,
		Stored: r.Manifest.StoredBytes,
	}
	return r.Manifest, stats, nil
}

func lengthOf(ranges []Range) (n int64) {
	for _, r := range ranges {
		n += r.Len
	}
	return n
}

// lineages finds what the new generation begins with and what has changed since.
func (d *draft) lineages(ctx context.Context) (memory, disk *lineage, err error) {
	memory = &lineage{kind: buildfmt.Memory, ranges: d.memoryDraft.Ranges(), source: d.memoryDraft}
	disk = &lineage{kind: buildfmt.Disk, ranges: d.frozen.Ranges(), source: d.frozen}
	if d.memoryBase == nil {
		memory.parent, err = snapfmt.New(d.manifest.MemoryBytes, BlockSize)
	} else {
		memory.parent, memory.builds, err = d.store.parent(ctx, d.memoryBase, buildfmt.Memory)
	}
	if err != nil {
		return nil, nil, err
	}
	if disk.parent, disk.builds, err = d.store.parent(ctx, d.diskBase, buildfmt.Disk); err != nil {
		return nil, nil, err
	}
	disk.parent, err = disk.parent.Grow(d.manifest.DiskBytes)
	return memory, disk, err
}

// build packs what has changed and merges the header, which it writes into the file name.
func (d *draft) build(ctx context.Context, l *lineage, name string) error {
	p, err := d.store.newPacker(d.dir, l.kind)
	if err != nil {
		return err
	}
	defer p.abort()
	if err := p.putRanges(ctx, l.ranges, l.source); err != nil {
		return fmt.Errorf("%s: %w", l.kind, err)
	}
	if l.packed, err = p.finish(); err != nil {
		return err
	}
	if l.header, err = l.parent.Merge(l.packed.id(), l.packed.changes); err != nil {
		return fmt.Errorf("%s: %w", l.kind, err)
	}
	encoded, err := l.header.Encode()
	if err != nil {
		return err
	}
	l.object, err = writeFile(filepath.Join(d.entry(), name), snapshotKey(d.manifest.ID, name), encoded)
	return err
}

// named are the builds that the new header names.
func (l *lineage) named() []Build {
	all := slices.Concat(l.builds, l.packed.records())
	return slices.DeleteFunc(all, func(b Build) bool { return !slices.Contains(l.header.Builds, b.ID) })
}

// record completes the record and writes the files that describe the snapshot.
func (d *draft) record(r *Record, memory, disk *lineage) error {
	r.MemoryHeader, r.DiskHeader = memory.object, disk.object
	for _, b := range slices.Concat(memory.named(), disk.named()) {
		if !slices.ContainsFunc(r.Builds, func(o Build) bool { return o.ID == b.ID }) {
			r.Builds = append(r.Builds, b)
		}
	}
	if set := d.memory.WorkingSet(); len(set) > 0 {
		o, err := writeFile(filepath.Join(d.entry(), workingSetName), snapshotKey(d.manifest.ID, workingSetName), encodeWorkingSet(set))
		if err != nil {
			return err
		}
		r.WorkingSet = &o
	}
	man := &r.Manifest
	man.MemoryBuilds, man.DiskBuilds = idStrings(memory.header.Builds), idStrings(disk.header.Builds)
	man.StoredBytes = r.State.Size + r.MemoryHeader.Size + r.DiskHeader.Size + memory.packed.info.Stored + disk.packed.info.Stored
	if r.WorkingSet != nil {
		man.StoredBytes += r.WorkingSet.Size
	}
	if err := r.check(man.ID); err != nil {
		return fmt.Errorf("snapshot %s: %w", man.ID, err)
	}
	return writeJSON(filepath.Join(d.entry(), manifestName), r)
}

// publish makes everything durable and the snapshot appear.
func (d *draft) publish(ctx context.Context, r *Record, memory, disk *lineage) (_ *entry, err error) {
	s, id := d.store, r.Manifest.ID
	e := &entry{id: id, dir: s.path("snapshots", id), gate: newGate(), record: r}
	s.mu.Lock()
	e.builds = s.name(id, r.Builds)
	s.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(e.dir), s.unname(e.builds, d.dir))
		}
	}()
	var files []string
	names, err := os.ReadDir(d.entry())
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		files = append(files, filepath.Join(d.entry(), n.Name()))
	}
	if err := s.place(ctx, []*packed{memory.packed, disk.packed}, d.entry(), e.dir, files...); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.snaps[id] = e
	s.mu.Unlock()
	return e, nil
}

// place syncs builds, the files of an entry and its directory, and moves them to where they are found: the directory last.
func (s *Store) place(ctx context.Context, builds []*packed, dir, target string, files ...string) error {
	paths := append([]string{dir}, files...)
	for _, p := range builds {
		if p.info.Stored > 0 {
			paths = append(paths, p.path)
		}
	}
	if err := syncAll(ctx, paths...); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for _, p := range builds {
		if p.info.Stored > 0 {
			if err := os.Rename(p.path, s.buildPath(p.info.ID)); err != nil {
				return err
			}
		}
	}
	if err := syncPath(s.path("builds")); err != nil {
		return err
	}
	if err := os.Rename(dir, target); err != nil {
		return err
	}
	return syncPath(filepath.Dir(target))
}

// hand gives the memory's draft to the pager. If it does not take it, the memory is read from the builds, which is only slower.
func (d *draft) hand(e *entry, memory *lineage) {
	v, err := newView("memory of snapshot "+e.id, memory.header, e.builds)
	if err == nil {
		err = d.memoryDraft.Commit(v)
	}
	if err != nil {
		d.store.log.Warn("the page cache of a new snapshot is lost", "snapshot_id", e.id, "error", errors.Join(err, d.memoryDraft.Abort()))
	}
}

func writeJSON(path string, body any) error {
	sealed, err := sealJSON(body)
	if err != nil {
		return err
	}
	_, err = writeFile(path, "", sealed)
	return err
}
