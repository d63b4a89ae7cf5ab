package snapstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
)

// Healing: what is damaged on this host is fetched from elsewhere, verified like everything that is fetched, and put in its place. So it
// heals if the registry or another host has it whole; else it stays as it is, and is refused by name.

// healTime bounds how long others are asked in one healing: who waits for it would rather hear that the snapshot is damaged than wait for a
// registry that is out of reach.
const healTime = 10 * time.Second

// damagedHere tells an error that another copy would not have.
func damagedHere(err error) bool {
	return errors.Is(err, buildfmt.ErrCorrupt) || errors.Is(err, machine.ErrDamaged) || errors.Is(err, unix.EIO)
}

// heal has something that is damaged replaced by fix, and returns damage where that cannot be done. what names it in the log.
func (s *Store) heal(ctx context.Context, what string, damage error, fix func(context.Context) error) error {
	if s.conf.Fetcher == nil || !damagedHere(damage) || ctx.Err() != nil {
		return damage
	}
	ctx, cancel := context.WithTimeout(ctx, healTime)
	defer cancel()
	began := time.Now()
	err := fix(ctx)
	s.conf.Healed(err == nil)
	if err != nil {
		s.log.Error("something is damaged on this host and cannot be healed", "what", what, "damage", damage, "error", err)
		return damage
	}
	s.log.Warn("something was damaged on this host and is healed", "what", what, "damage", damage, "took", time.Since(began))
	return nil
}

// readObject reads one of an entry's files whole and verifies it, and heals it if need be.
func (s *Store) readObject(ctx context.Context, e *entry, name string, want Object) ([]byte, error) {
	data, err := e.readObject(name, want)
	if err == nil || want.Key == "" { // A converted image's is nowhere else.
		return data, err
	}
	err = s.healFile(ctx, e, name, want, err)
	if err != nil {
		return nil, err
	}
	return e.readObject(name, want)
}

// healFile replaces one of a snapshot's files.
func (s *Store) healFile(ctx context.Context, e *entry, name string, want Object, damage error) error {
	return s.heal(ctx, want.Key, damage, func(ctx context.Context) error {
		data := make([]byte, want.Size)
		err := s.fetchVerified(ctx, e.id, want, data, 0, func() error { return differ(objectOf(data), want) })
		if err != nil {
			return err
		}
		return replaceFile(filepath.Join(e.dir, name), data)
	})
}

// fetchVerified fills p from an object at off. What does not pass check is fetched once more, from elsewhere.
func (s *Store) fetchVerified(ctx context.Context, snapshotID string, o Object, p []byte, off int64, check func() error) (err error) {
	for _, distrust := range []bool{false, true} {
		if len(p) > 0 {
			if _, err := s.conf.Fetcher.ReadAt(ctx, snapshotID, o, p, off, distrust); err != nil {
				return err
			}
		}
		if err = check(); err == nil {
			return nil
		}
	}
	return err
}

// replaceFile replaces a file durably, as a whole.
func replaceFile(path string, data []byte) error {
	next := path + ".new"
	err := os.WriteFile(next, data, 0o600)
	if err == nil {
		err = syncPath(next)
	}
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return errors.Join(err, removeIfThere(next))
	}
	return syncPath(filepath.Dir(path))
}

// healRecord replaces a snapshot's record, by what the agent has read of it before or by the registry's.
func (s *Store) healRecord(ctx context.Context, e *entry, damage error) (*Record, error) {
	s.mu.Lock()
	r := e.record
	s.mu.Unlock()
	err := s.heal(ctx, snapshotKey(e.id, manifestName), damage, func(ctx context.Context) error {
		if r == nil {
			var err error
			if r, err = s.conf.Fetcher.Record(ctx, e.id); err != nil {
				return err
			}
		}
		if err := r.check(e.id); err != nil {
			return err
		}
		sealed, err := sealJSON(r)
		if err != nil {
			return err
		}
		return replaceFile(filepath.Join(e.dir, manifestName), sealed)
	})
	return r, err
}

// healBuild makes a partial build of a damaged file, if what is needed to read a build can be had from elsewhere: its frames that are whole
// stay, the others are fetched when they are read. The build's gate is held, and nobody has it open.
func (b *build) healBuild(ctx context.Context, damage error) (*buildBody, error) {
	var body *buildBody
	err := b.store.heal(ctx, b.Data.Key, damage, func(asking context.Context) (err error) {
		// Nothing is changed before it is certain that the build can be read.
		r, err := buildfmt.Open(asking, elsewhere{b, false}, b.Data.Size, b.ID)
		if errors.Is(err, buildfmt.ErrCorrupt) {
			r, err = buildfmt.Open(asking, elsewhere{b, true}, b.Data.Size, b.ID)
		}
		if err != nil {
			return err
		}
		path := b.store.buildPath(b.ID)
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		have := wholeFrames(ctx, r, f) // It takes as long as the disk does, which a large build must not fail for.
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := replaceFile(path+marksSuffix, have); err != nil {
			return err
		}
		if err := os.Rename(path, path+partSuffix); err != nil {
			return err
		}
		asking, cancel := context.WithTimeout(ctx, healTime)
		defer cancel()
		body, err = b.openPartial(asking)
		return err
	})
	return body, err
}

// wholeFrames is the map of a partial build's file: which of its frames are there. Its index is not.
func wholeFrames(ctx context.Context, r *buildfmt.Reader, f *os.File) []byte {
	have := make([]byte, r.Frames()+1)
	for i := range r.Frames() {
		if ctx.Err() == nil && frameWhole(r, f, i) {
			have[i+1] = 1
		}
	}
	return have
}

func frameWhole(r *buildfmt.Reader, f *os.File, i int) bool {
	frame := r.Frame(i)
	stored := make([]byte, frame.Stored)
	_, err := f.ReadAt(stored, frame.Offset)
	return err == nil && r.Check(i, stored) == nil
}

// elsewhere is a build as others have it.
type elsewhere struct {
	*build
	distrust bool
}

// ReadAt makes it a buildfmt.Source.
func (e elsewhere) ReadAt(ctx context.Context, p []byte, off int64) (string, error) {
	return e.store.conf.Fetcher.ReadAt(ctx, e.snapshot, e.Data, p, off, e.distrust)
}

// mendTime bounds the background's healing of one build.
const mendTime = 2 * time.Minute

// mend has the rest of a build healed in the background, part of which was found damaged: what heals it today may be collected tomorrow.
func (s *Store) mend(b *build) {
	if !b.mending.CompareAndSwap(false, true) {
		return
	}
	s.worker.add(func(ctx context.Context) {
		b.mending.Store(false) // What is found from now on may be of frames that this has passed by.
		s.mu.Lock()
		body, leave := s.useLocked(b)
		s.mu.Unlock()
		if body == nil {
			return // Nobody has it open; whoever reads it next heals what he reads.
		}
		defer leave()
		ctx, cancel := context.WithTimeout(ctx, mendTime)
		defer cancel()
		if err := b.mendAll(ctx, body); err != nil && s.worker.ctx.Err() == nil {
			s.log.Error("not all of a damaged build can be healed", "build_id", b.ID, "error", err)
		}
	})
}

func (b *build) mendAll(ctx context.Context, body *buildBody) error {
	r := body.reader
	if body.part != nil {
		_, err := body.part.bring(ctx, r, 0, r.Frames())
		return err
	}
	var errs []error
	for i := range r.Frames() {
		if ctx.Err() != nil || frameWhole(r, body.file, i) {
			continue
		}
		if err := b.healFrames(ctx, body, i, &buildfmt.CorruptError{Build: b.ID, Frame: i, Problem: "its checksum is wrong"}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, context.Cause(ctx))...)
}

// healFrames replaces frame i of a whole build's file, and those damaged right behind it. A frame is written into its place: who reads it half
// written sees that, and waits for its turn to heal it.
func (b *build) healFrames(ctx context.Context, body *buildBody, i int, damage error) error {
	if err := b.gate.enter(ctx); err != nil {
		return err
	}
	defer b.gate.leave()
	r := body.reader
	if frameWhole(r, body.file, i) {
		return nil // Another was faster.
	}
	end, size := i+1, r.Frame(i).Stored
	for ; end < r.Frames() && size+r.Frame(end).Stored <= maxPull && !frameWhole(r, body.file, end); end++ {
		size += r.Frame(end).Stored
	}
	what := fmt.Sprintf("%s, frames %d to %d", b.Data.Key, i, end-1)
	return b.store.heal(ctx, what, damage, func(ctx context.Context) error {
		buf := make([]byte, size)
		start := r.Frame(i).Offset
		err := b.store.fetchVerified(ctx, b.snapshot, b.Data, buf, start, func() error { return checkFrames(r, i, end, buf) })
		if err != nil {
			return err
		}
		f, err := os.OpenFile(b.store.buildPath(b.ID), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(buf, start)
		if err == nil {
			err = f.Sync()
		}
		return errors.Join(err, f.Close())
	})
}
