package snapstore

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
)

// OpenDisk pins a snapshot of which only the disk is needed: state, memory and working set are neither read nor verified.
// machine.ErrSnapshotNotFound, machine.ErrDamaged where it is the disk.
func (s *Store) OpenDisk(ctx context.Context, id string) (machine.Base, error) {
	e, err := s.pin(ctx, id)
	if err != nil {
		return nil, err
	}
	b, err := s.openDisk(ctx, e)
	if err != nil {
		s.unpin(e)
		return nil, err
	}
	return b, nil
}

// openDisk reads the disk of a pinned entry, whose pin it takes over unless it fails. What it reads is not shared with those who have
// the whole snapshot open, as they must find its memory with it.
func (s *Store) openDisk(ctx context.Context, e *entry) (*Snapshot, error) {
	if err := e.gate.enter(ctx); err != nil {
		return nil, err
	}
	defer e.gate.leave()
	if err := s.reread(ctx, e); err != nil {
		return nil, err
	}
	var builds []*build
	s.mu.Lock()
	for _, b := range e.builds {
		if b.Kind == buildfmt.Disk.String() {
			b.users++
			builds = append(builds, b)
		}
	}
	record := e.record
	s.mu.Unlock()
	v, err := s.openView(ctx, e, record, builds)
	if err != nil {
		s.leave(builds)
		return nil, err
	}
	return s.opened(e, record, &contents{disk: v}, builds), nil
}

// openView opens builds, of which the caller is a user, and reads the disk's view of them.
func (s *Store) openView(ctx context.Context, e *entry, r *Record, builds []*build) (*View, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxFetches)
	for _, b := range builds {
		g.Go(func() error { return b.open(gctx) })
	}
	if err := g.Wait(); errors.Is(err, buildfmt.ErrCorrupt) {
		return nil, e.damaged("builds", err)
	} else if err != nil {
		return nil, err
	}
	v, err := s.readView(ctx, e, "disk", diskName, r.DiskHeader, r.Manifest.DiskBytes, builds)
	if err != nil {
		return nil, err
	}
	if err := v.checkExtents(); err != nil {
		return nil, e.damaged(diskName, err)
	}
	return v, nil
}
