package snapstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coveyhq/covey/hostagent/internal/machine"
)

// fetch brings a snapshot of elsewhere to this host and pins it: its record, state, headers and working set. Builds are fetched as
// they are read. Of those who want it at the same time one does it.
func (s *Store) fetch(ctx context.Context, id string) (*entry, error) {
	if s.conf.Fetcher == nil {
		return nil, fmt.Errorf("%w: this host has none with id %s", machine.ErrSnapshotNotFound, id)
	}
	leave, err := s.enter(ctx, "snapshot "+id)
	if err != nil {
		return nil, err
	}
	defer leave()
	if e := s.pinLocal(id); e != nil {
		return e, nil
	}
	r, done, err := s.conf.Fetcher.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := r.check(id); err != nil {
		return nil, fmt.Errorf("snapshot %s: %s: %w: %w", id, manifestName, machine.ErrDamaged, err)
	}
	dir, err := s.tempDir(id)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := s.fetchFiles(ctx, dir, r); err != nil {
		return nil, err
	}
	return s.admit(ctx, dir, r)
}

// fetchFiles fetches and verifies what is read whole.
func (s *Store) fetchFiles(ctx context.Context, dir string, r *Record) error {
	id := r.Manifest.ID
	files := map[string]Object{stateName: r.State, memoryName: r.MemoryHeader, diskName: r.DiskHeader}
	if r.WorkingSet != nil {
		files[workingSetName] = *r.WorkingSet
	}
	for name, want := range files {
		var got Object
		for _, distrust := range []bool{false, true} {
			data := make([]byte, want.Size)
			if len(data) > 0 {
				if _, err := s.conf.Fetcher.ReadAt(ctx, id, want, data, 0, distrust); err != nil {
					return fmt.Errorf("snapshot %s: %s: %w", id, name, err)
				}
			}
			var err error
			if got, err = writeFile(filepath.Join(dir, name), want.Key, data); err != nil {
				return err
			}
			if got == want {
				break
			}
		}
		if err := differ(got, want); err != nil {
			return fmt.Errorf("snapshot %s: %s: %w: %w", id, name, machine.ErrDamaged, err)
		}
	}
	sealed, err := sealJSON(r)
	if err == nil {
		_, err = writeFile(filepath.Join(dir, manifestName), "", sealed)
	}
	return err
}

// admit moves a directory that has all files of a snapshot into place, durably, and pins the new entry.
func (s *Store) admit(ctx context.Context, dir string, r *Record) (*entry, error) {
	id := r.Manifest.ID
	paths := []string{dir}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		paths = append(paths, filepath.Join(dir, n.Name()))
	}
	if err := syncAll(ctx, paths...); err != nil {
		return nil, err
	}
	e := &entry{id: id, dir: s.path("snapshots", id), gate: newGate(), record: r, pins: 1}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snaps[id] != nil {
		return nil, fmt.Errorf("snapshot %s: this host has one of this id already", id)
	}
	if err := os.Rename(dir, e.dir); err != nil {
		return nil, err
	}
	e.builds = s.name(id, r.Builds)
	s.snaps[id] = e
	return e, nil
}
