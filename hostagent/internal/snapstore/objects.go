package snapstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// ErrNotHere: this host does not have an object, or not the range of it that was asked for.
var ErrNotHere = errors.New("this host does not have it")

// Record is a snapshot's record, for who tells the registry of it.
func (s *Store) Record(id string) (*Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.snaps[id]
	switch {
	case e == nil || e.doomed:
		return nil, fmt.Errorf("%w: this host has none with id %.80q", machine.ErrSnapshotNotFound, id)
	case e.record == nil:
		return nil, e.damaged(manifestName, e.problem)
	}
	return e.record, nil
}

// Export is a snapshot that is being uploaded: pinned, and readable object by object.
type Export struct {
	Record *Record
	// Objects are all that the record names, builds last.
	Objects []Object

	store   *Store
	entry   *entry
	release func()
}

// Export pins a snapshot of this host until Close, without reading any of it.
func (s *Store) Export(id string) (*Export, error) {
	e := s.pinLocal(id)
	if e == nil {
		return nil, fmt.Errorf("%w: this host has none with id %.80q", machine.ErrSnapshotNotFound, id)
	}
	r, err := s.Record(id)
	if err != nil {
		s.unpin(e)
		return nil, err
	}
	x := &Export{Record: r, Objects: []Object{r.State, r.MemoryHeader, r.DiskHeader}, store: s, entry: e, release: sync.OnceFunc(func() { s.unpin(e) })}
	if r.WorkingSet != nil {
		x.Objects = append(x.Objects, *r.WorkingSet)
	}
	for _, b := range r.Builds {
		x.Objects = append(x.Objects, b.Data)
	}
	return x, nil
}

// Open opens one of the objects. ErrNotHere where it is a build of which this host has only a part.
func (x *Export) Open(key string) (*ObjectFile, error) {
	o, err := x.store.OpenObject(key)
	if err == nil && o.part != nil {
		err = errors.Join(fmt.Errorf("object %s: %w as a whole", key, ErrNotHere), o.Close())
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

// Close ends the pin.
func (x *Export) Close() { x.release() }

// ObjectFile is an object's file, open for reading. It stays readable when the object is removed.
type ObjectFile struct {
	Size int64
	f    *os.File
	part *buildBody // nil where the file is whole
	done func()
}

// OpenObject opens an object that this host has, or has in part, by its key. ErrNotHere. It is for uploads and for peers: who
// reads it verifies it.
func (s *Store) OpenObject(key string) (*ObjectFile, error) {
	path, b, err := s.objectPath(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && b != nil {
		return s.openPart(key, b)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("object %.200s: %w", key, ErrNotHere)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &ObjectFile{Size: st.Size(), f: f, done: func() {}}, nil
}

// Times of waiting for an object that is about to be here.
const (
	comeTime = 200 * time.Millisecond
	comeLook = 5 * time.Millisecond
)

// AwaitObject is OpenObject for a host that reads the same snapshot at the same time: where that is just being fetched here, or the object
// opened, it waits a little.
func (s *Store) AwaitObject(ctx context.Context, snapshotID, key string) (*ObjectFile, error) {
	o, err := s.OpenObject(key)
	if !errors.Is(err, ErrNotHere) || !s.coming(snapshotID, key) {
		return o, err
	}
	end := time.NewTimer(comeTime)
	defer end.Stop()
	look := time.NewTicker(comeLook)
	defer look.Stop()
	for errors.Is(err, ErrNotHere) {
		select {
		case <-look.C:
			o, err = s.OpenObject(key)
		case <-end.C:
			return nil, err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return o, err
}

// coming tells whether a snapshot is being fetched, or a build of it opened.
func (s *Store) coming(snapshotID, key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gates["snapshot "+snapshotID] != nil {
		return true
	}
	_, id, _ := strings.Cut(key, "builds/")
	parsed, err := snapfmt.ParseID(id)
	b := s.builds[parsed]
	return err == nil && b != nil && b.users > 0 && b.body.Load() == nil
}

// objectPath finds where an object lies, and which build it is.
func (s *Store) objectPath(key string) (string, *build, error) {
	unknown := fmt.Errorf("object %.200s: %w", key, ErrNotHere)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch parts := strings.Split(key, "/"); {
	case len(parts) == 2 && parts[0] == "builds":
		id, err := snapfmt.ParseID(parts[1])
		if err != nil || s.builds[id] == nil {
			return "", nil, unknown
		}
		return s.buildPath(id), s.builds[id], nil
	case len(parts) == 3 && parts[0] == "snapshots":
		e := s.snaps[parts[1]]
		if e == nil {
			return "", nil, unknown
		}
		switch parts[2] {
		case manifestName, stateName, memoryName, diskName, workingSetName:
			return filepath.Join(e.dir, parts[2]), nil, nil
		}
	}
	return "", nil, unknown
}

// openPart opens what was fetched of a build, if somebody has it open: only then it is known which frames are there.
func (s *Store) openPart(key string, b *build) (*ObjectFile, error) {
	body, leave := s.use(b)
	if body == nil {
		return nil, fmt.Errorf("object %s: %w", key, ErrNotHere)
	}
	return &ObjectFile{Size: b.Data.Size, f: body.file, part: body, done: leave}, nil
}

// use keeps a partial build open that somebody has open, until leave is called; nil where nobody has.
func (s *Store) use(b *build) (body *buildBody, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if body = b.body.Load(); body == nil || body.part == nil {
		return nil, nil
	}
	return s.useLocked(b)
}

// useLocked is use for a build of which anything is here. The store's lock is held.
func (s *Store) useLocked(b *build) (body *buildBody, leave func()) {
	if body = b.body.Load(); body == nil || b.users == 0 {
		return nil, nil
	}
	b.users++
	return body, sync.OnceFunc(func() { s.leave([]*build{b}) })
}

// ReadAt is io.ReaderAt. ErrNotHere where the range was not fetched.
func (o *ObjectFile) ReadAt(p []byte, off int64) (int, error) {
	if o.part != nil && !o.part.part.hasStored(o.part.reader, off, int64(len(p))) {
		return 0, ErrNotHere
	}
	return o.f.ReadAt(p, off)
}

// Fetch brings what is missing of a range.
func (o *ObjectFile) Fetch(ctx context.Context, off, length int64) error {
	if o.part == nil {
		return nil
	}
	first, end := storedFrames(o.part.reader, off, length)
	_, err := o.part.part.bring(ctx, o.part.reader, first, end)
	return err
}

// Reader reads from an offset to the end.
func (o *ObjectFile) Reader(off int64) io.Reader { return io.NewSectionReader(o, off, o.Size-off) }

// Close ends the use of the file.
func (o *ObjectFile) Close() error {
	if o.part != nil {
		o.done()
		return nil
	}
	return o.f.Close()
}
