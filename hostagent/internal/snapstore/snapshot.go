package snapstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// entry is a snapshot or an image that this host has.
type entry struct {
	id      string
	dir     string
	isImage bool
	gate    gate // held while contents or squash are made

	// record is nil where it cannot be read, problem then says why. Both are guarded by Store.mu, like all below.
	record  *Record
	problem error
	builds  []*build // references held
	pins    int
	// doomed: it is removed once it is pinned no more.
	doomed   bool
	contents *contents // nil unless pinned and read
	squash   *squash   // nil if there is none
	// images are the catalog's names of an image of this content; never changed, but replaced.
	images []imageInfo
}

// contents are what a pinned entry has in memory. They are never changed.
type contents struct {
	memory, disk *View
	workingSet   []int64
}

// Snapshot is a pinned snapshot or image. It implements machine.Base, and disk.Base and pager.Source by its views.
type Snapshot struct {
	store    *Store
	entry    *entry
	record   *Record
	contents *contents
	// own are the builds that it uses by itself, where contents are not the entry's.
	own     []*build
	release func()
}

// Manifest describes it.
func (b *Snapshot) Manifest() machine.Manifest { return b.record.Manifest }

// StatePath is the device state's file; empty for an image.
func (b *Snapshot) StatePath() string {
	if b.entry.isImage {
		return ""
	}
	return filepath.Join(b.entry.dir, stateName)
}

// Memory is nil for an image, and where only the disk was opened.
func (b *Snapshot) Memory() *View { return b.contents.memory }

// Disk is what its disk held.
func (b *Snapshot) Disk() *View { return b.contents.disk }

// WorkingSet are the offsets in memory that were needed first, in the order of need.
func (b *Snapshot) WorkingSet() []int64 { return b.contents.workingSet }

// Release ends the pin. The second time it does nothing.
func (b *Snapshot) Release() { b.release() }

// Open finds a snapshot on this host or elsewhere, verifies what is read whole, and pins it. machine.ErrSnapshotNotFound,
// machine.ErrDamaged.
func (s *Store) Open(ctx context.Context, id string) (machine.Base, error) {
	b, err := s.OpenSnapshot(ctx, id)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// OpenSnapshot is Open, with the type that has the views.
func (s *Store) OpenSnapshot(ctx context.Context, id string) (*Snapshot, error) {
	e, err := s.pin(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.openPinned(ctx, e)
}

// pin pins a snapshot, which is brought to this host if need be.
func (s *Store) pin(ctx context.Context, id string) (*entry, error) {
	if !validID.MatchString(id) {
		return nil, fmt.Errorf("%w: %.80q cannot name one", machine.ErrSnapshotNotFound, id)
	}
	if e := s.pinLocal(id); e != nil {
		return e, nil
	}
	return s.fetch(ctx, id)
}

// pinLocal pins a snapshot that this host has; nil if it has not.
func (s *Store) pinLocal(id string) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.snaps[id]
	if e == nil || e.doomed {
		return nil
	}
	e.pins++
	return e
}

// openPinned makes a Snapshot of an entry whose pin it takes over.
func (s *Store) openPinned(ctx context.Context, e *entry) (_ *Snapshot, err error) {
	defer func() {
		if err != nil {
			s.unpin(e)
		}
	}()
	c, record, err := s.load(ctx, e)
	if err != nil {
		return nil, err
	}
	return s.opened(e, record, c, nil), nil
}

// opened is a snapshot that takes over a pin, and a use of each of its own builds.
func (s *Store) opened(e *entry, r *Record, c *contents, own []*build) *Snapshot {
	return &Snapshot{store: s, entry: e, record: r, contents: c, own: own, release: sync.OnceFunc(func() {
		s.leave(own)
		s.unpin(e)
	})}
}

// again pins an open snapshot once more.
func (b *Snapshot) again() *Snapshot {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	b.entry.pins++
	for _, o := range b.own {
		o.users++
	}
	return b.store.opened(b.entry, b.record, b.contents, b.own)
}

func (s *Store) unpin(e *entry) {
	s.mu.Lock()
	e.pins--
	last := e.pins == 0
	var idle []*build
	if last && e.contents != nil {
		e.contents = nil
		idle = s.disuse(e.builds)
	}
	gone := last && e.doomed
	s.mu.Unlock()
	s.closeBuilds(idle)
	if gone {
		if err := s.remove(e); err != nil {
			s.log.Error("a snapshot could not be removed; the next start of the agent will", "snapshot_id", e.id, "error", err)
		}
	}
}

// disuse ends one use of builds and returns those that nobody uses any more. The store's lock is held.
func (s *Store) disuse(builds []*build) (idle []*build) {
	for _, b := range builds {
		if b.users--; b.users == 0 {
			idle = append(idle, b)
		}
	}
	return idle
}

// leave ends one use of builds and closes those that nobody uses any more.
func (s *Store) leave(builds []*build) {
	if len(builds) == 0 {
		return
	}
	s.mu.Lock()
	idle := s.disuse(builds)
	s.mu.Unlock()
	s.closeBuilds(idle)
}

// closeBuilds closes builds, unless somebody has come to use them meanwhile.
func (s *Store) closeBuilds(idle []*build) {
	for _, b := range idle {
		b.gate <- struct{}{}
		s.mu.Lock()
		used := b.users > 0
		s.mu.Unlock()
		if !used {
			if err := b.close(); err != nil {
				s.log.Warn("a build's file could not be closed", "build_id", b.ID, "error", err)
			}
		}
		b.gate.leave()
	}
}

// load reads and verifies what is read whole of a pinned entry: the state always, the rest if nobody else has it open.
func (s *Store) load(ctx context.Context, e *entry) (*contents, *Record, error) {
	if err := e.gate.enter(ctx); err != nil {
		return nil, nil, err
	}
	defer e.gate.leave()
	if err := s.reread(ctx, e); err != nil {
		return nil, nil, err
	}
	if !e.isImage {
		err := e.checkState(ctx)
		if err != nil {
			err = s.healFile(ctx, e, stateName, e.record.State, err)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	s.mu.Lock()
	c, builds := e.contents, e.builds
	if c == nil {
		for _, b := range builds {
			b.users++
		}
	}
	s.mu.Unlock()
	if c != nil {
		return c, e.record, nil
	}
	c, err := s.read(ctx, e, builds)
	var idle []*build
	s.mu.Lock()
	if err == nil {
		e.contents = c
	} else {
		idle = s.disuse(builds)
	}
	s.mu.Unlock()
	s.closeBuilds(idle)
	return c, e.record, err
}

// reread tries again to read a record that could not be read.
func (s *Store) reread(ctx context.Context, e *entry) error {
	if e.isImage {
		return nil
	}
	r, err := readRecord(e.dir, e.id)
	if err != nil {
		r, err = s.healRecord(ctx, e, e.damaged(manifestName, err))
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.record == nil {
		e.record, e.problem = r, nil
		e.builds = s.name(e.id, r.Builds)
	}
	return nil
}

// damaged is an error that says which part of a snapshot is not what was written.
func (e *entry) damaged(part string, err error) error {
	kind := "snapshot"
	if e.isImage {
		kind = "image"
	}
	return fmt.Errorf("%s %s: %s: %w: %w", kind, e.id, part, machine.ErrDamaged, err)
}

func (e *entry) checkState(ctx context.Context) error {
	want := e.record.State
	got, err := hashFile(ctx, filepath.Join(e.dir, stateName), want.Key, want.Size)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		err = differ(got, want)
	}
	if err != nil {
		return e.damaged(stateName, err)
	}
	return nil
}

func differ(got, want Object) error {
	switch {
	case got.Size != want.Size:
		return fmt.Errorf("it has %d bytes, must have %d", got.Size, want.Size)
	case got.SHA256 != want.SHA256:
		return fmt.Errorf("its SHA-256 is %s, must be %s", got.SHA256, want.SHA256)
	}
	return nil
}

// readObject reads a file whole and verifies it.
func (e *entry) readObject(name string, want Object) ([]byte, error) {
	data, err := readBounded(filepath.Join(e.dir, name), want.Size)
	if err == nil {
		err = differ(objectOf(data), want)
	}
	if err != nil {
		return nil, e.damaged(name, err)
	}
	return data, nil
}

// read makes the contents; the builds' uses are counted.
func (s *Store) read(ctx context.Context, e *entry, builds []*build) (*contents, error) {
	c := &contents{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxFetches)
	for _, b := range builds {
		g.Go(func() error {
			err := b.open(ctx)
			if errors.Is(err, buildfmt.ErrCorrupt) {
				return e.damaged("builds", err)
			}
			return err
		})
	}
	var err error
	r := e.record
	if c.disk, err = s.readView(ctx, e, "disk", diskName, r.DiskHeader, r.Manifest.DiskBytes, builds); err == nil && !e.isImage {
		c.memory, err = s.readView(ctx, e, "memory", memoryName, r.MemoryHeader, r.Manifest.MemoryBytes, builds)
	}
	if err == nil && r.WorkingSet != nil {
		c.workingSet, err = s.readWorkingSet(ctx, e)
	}
	if err = errors.Join(err, g.Wait()); err != nil {
		return nil, err
	}
	for name, v := range map[string]*View{diskName: c.disk, memoryName: c.memory} {
		if v == nil {
			continue
		}
		if err := v.checkExtents(); err != nil {
			return nil, e.damaged(name, err)
		}
	}
	return c, nil
}

func (s *Store) readView(ctx context.Context, e *entry, kind, name string, object Object, size int64, builds []*build) (*View, error) {
	data, err := s.readObject(ctx, e, name, object)
	if err != nil {
		return nil, err
	}
	h, err := snapfmt.Decode(data)
	if err == nil && (h.Size != size || h.BlockSize != BlockSize) {
		err = fmt.Errorf("it maps %d bytes in blocks of %d; must be %d in blocks of %d", h.Size, h.BlockSize, size, BlockSize)
	}
	if err != nil {
		return nil, e.damaged(name, err)
	}
	v, err := newView(fmt.Sprintf("%s of snapshot %s", kind, e.id), h, builds)
	if err != nil {
		return nil, e.damaged(name, err)
	}
	return v, nil
}

// newView makes a view by a header whose builds are among those given.
func newView(what string, h *snapfmt.Header, builds []*build) (*View, error) {
	v := &View{what: what, header: h}
	for _, id := range h.Builds {
		i := slices.IndexFunc(builds, func(b *build) bool { return b.ID == id })
		if i < 0 {
			return nil, fmt.Errorf("it names build %s, which is not recorded", id)
		}
		v.builds = append(v.builds, builds[i])
	}
	return v, nil
}

const workingSetMagic = "COVEYWS1"

// encodeWorkingSet writes offsets: the magic "COVEYWS1", then 8 bytes each, little endian.
func encodeWorkingSet(offsets []int64) []byte {
	b := []byte(workingSetMagic)
	for _, off := range offsets {
		b = binary.LittleEndian.AppendUint64(b, uint64(off))
	}
	return b
}

func (s *Store) readWorkingSet(ctx context.Context, e *entry) ([]int64, error) {
	data, err := s.readObject(ctx, e, workingSetName, *e.record.WorkingSet)
	if err != nil {
		return nil, err
	}
	list, err := decodeWorkingSet(data, e.record.Manifest.MemoryBytes)
	if err != nil {
		return nil, e.damaged(workingSetName, err)
	}
	return list, nil
}

func decodeWorkingSet(b []byte, size int64) ([]int64, error) {
	if len(b) < len(workingSetMagic) || string(b[:len(workingSetMagic)]) != workingSetMagic || len(b)%8 != 0 {
		return nil, errors.New("it is not a list of offsets")
	}
	var list []int64
	for b = b[len(workingSetMagic):]; len(b) > 0; b = b[8:] {
		off := binary.LittleEndian.Uint64(b)
		if off%BlockSize != 0 || off >= uint64(size) {
			return nil, fmt.Errorf("offset %d is not that of a block within %d bytes", off, size)
		}
		list = append(list, int64(off))
	}
	return list, nil
}

// Remove removes a snapshot from this host, at once or when it is pinned no more; builds that others need stay. One that is not here is no error.
func (s *Store) Remove(_ context.Context, id string) error {
	s.mu.Lock()
	e := s.snaps[id]
	if e == nil || e.doomed {
		s.mu.Unlock()
		return nil
	}
	e.doomed = true
	pinned := e.pins > 0
	s.mu.Unlock()
	if pinned {
		return nil
	}
	err := s.remove(e)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.snaps[id] == e {
			e.doomed = false // It is here still: who asks again must not be told that it is gone.
		}
	}
	return err
}

// remove removes a doomed entry that nobody has pinned: it is gone at once, its bytes a little later.
func (s *Store) remove(e *entry) error {
	trash, err := s.tempDir("removed-" + e.id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	table := s.snaps
	if e.isImage {
		table = s.images
	}
	if table[e.id] != e || !e.doomed || e.pins > 0 {
		s.mu.Unlock()
		return os.Remove(trash) // Gone, or an image that is used again.
	}
	if err := os.Rename(e.dir, filepath.Join(trash, "entry")); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.mu.Unlock()
		return errors.Join(err, os.Remove(trash))
	}
	delete(table, e.id)
	builds := e.builds
	if e.squash != nil {
		builds = slices.Concat(builds, e.squash.builds)
	}
	s.mu.Unlock()
	// The entry must not come back after a crash, when its builds may be gone.
	err = syncPath(filepath.Dir(e.dir))
	err = errors.Join(err, s.unname(builds, trash), os.RemoveAll(trash))
	if !e.isImage {
		s.conf.Removed(e.id)
	}
	return err
}
