package snapstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// scan finds what a former agent has left: complete entries are taken over, everything half-made is removed.
func (s *Store) scan() error {
	if err := s.sweepDrafts(); err != nil {
		return err
	}
	unread, err := s.scanSnapshots()
	if err == nil {
		err = s.scanImages()
	}
	if err != nil {
		return err
	}
	if len(unread) > 0 {
		s.log.Error("snapshots cannot be read; builds that nothing names are kept, as they may be theirs", "snapshot_ids", unread)
		return nil
	}
	return s.sweepBuilds()
}

func (s *Store) sweepDrafts() error {
	left, err := os.ReadDir(s.path("drafts"))
	if err != nil {
		return err
	}
	for _, d := range left {
		if err := os.RemoveAll(s.path("drafts", d.Name())); err != nil {
			return err
		}
		s.log.Warn("removed what a former agent had left half-made", "name", d.Name())
	}
	return nil
}

// scanSnapshots returns the ids of those whose builds it could not learn.
func (s *Store) scanSnapshots() (unread []string, err error) {
	dirs, err := os.ReadDir(s.path("snapshots"))
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		if !d.IsDir() || !validID.MatchString(d.Name()) {
			continue
		}
		e := &entry{id: d.Name(), dir: s.path("snapshots", d.Name()), gate: newGate()}
		if e.record, e.problem = readRecord(e.dir, e.id); e.problem != nil {
			e.record = nil
			s.log.Error("a snapshot cannot be read", "snapshot_id", e.id, "error", e.problem)
			unread = append(unread, e.id)
		} else {
			e.builds = s.name(e.id, e.record.Builds)
		}
		if e.squash, err = s.readSquash(e); err != nil {
			s.log.Warn("a squash cannot be read and is removed", "snapshot_id", e.id, "error", err)
			if err := os.RemoveAll(filepath.Join(e.dir, squashName)); err != nil {
				return nil, err
			}
		}
		s.snaps[e.id] = e
	}
	return unread, nil
}

// sweepBuilds removes the files of builds that nothing names.
func (s *Store) sweepBuilds() error {
	files, err := os.ReadDir(s.path("builds"))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		name := strings.TrimSuffix(strings.TrimSuffix(f.Name(), partSuffix), marksSuffix)
		if id, err := snapfmt.ParseID(name); err == nil && s.builds[id] != nil {
			continue
		}
		if err := os.Remove(filepath.Join(s.path("builds"), f.Name())); err != nil {
			errs = append(errs, fmt.Errorf("build %s: %w", name, err))
			continue
		}
		s.log.Warn("removed a build that nothing names", "file", f.Name())
	}
	return errors.Join(errs...)
}
