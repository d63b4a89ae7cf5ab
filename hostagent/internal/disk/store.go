package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"github.com/coveyhq/covey/hostagent/internal/disk/nbd"
)

// Base is an address space that is read and never written.
type Base interface {
	// Size in bytes, a multiple of BlockSize; it never changes.
	Size() int64
	// ReadAt fills all of p, with off and len multiples of BlockSize within Size, and tells where the bytes came from.
	ReadAt(ctx context.Context, p []byte, off int64) (from string, err error)
	// Run tells how far the run that off lies in goes on, and whether it is known to be all zeros.
	Run(off int64) (length int64, zero bool)
}

var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)

// ErrNoOverlay: Reopen of a disk that was never made, or was discarded.
var ErrNoOverlay = errors.New("there is no overlay")

// Store keeps the overlays of one host in a directory. It is safe for concurrent use.
type Store struct {
	dir string
	log *slog.Logger

	mu   sync.Mutex       // guards open
	open map[string]*Disk // by id; nil while it is being opened
}

// NewStore opens a directory of overlays, which it makes if need be. No two agents share one.
func NewStore(dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	return &Store{dir: dir, log: log, open: map[string]*Disk{}}, nil
}

// Create makes a disk of size bytes, with an empty overlay over base, and serves it on a Unix socket to the user uid. What
// an earlier overlay of the id had is lost. A nil base is all zeros; what lies beyond a base is zeros too.
func (s *Store) Create(_ context.Context, id string, base Base, size int64, socket string, uid int) (*Disk, error) {
	return s.start(id, base, size, socket, uid, func() ([]*layer, error) {
		if err := s.removeFiles(id); err != nil {
			return nil, err
		}
		l, err := createLayer(s.dir, id, 0, size)
		return []*layer{l}, err
	})
}

// Reopen serves the overlay that a former agent has made; base and size are what they were. ErrNoOverlay.
func (s *Store) Reopen(_ context.Context, id string, base Base, size int64, socket string, uid int) (*Disk, error) {
	return s.start(id, base, size, socket, uid, func() ([]*layer, error) { return s.openLayers(id, size) })
}

func (s *Store) start(id string, base Base, size int64, socket string, uid int, layers func() ([]*layer, error)) (_ *Disk, err error) {
	if base == nil {
		base = empty{}
	}
	switch {
	case !validID.MatchString(id):
		return nil, fmt.Errorf("disk: %q cannot name a disk", id)
	case size <= 0 || size%BlockSize != 0:
		return nil, fmt.Errorf("disk %s: its size must be a positive multiple of %d, got %d", id, BlockSize, size)
	case base.Size()%BlockSize != 0 || base.Size() > size:
		return nil, fmt.Errorf("disk %s: the base's size must be a multiple of %d and at most %d, is %d", id, BlockSize, size, base.Size())
	}
	if err := s.claim(id); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.forget(id)
			err = fmt.Errorf("disk %s: %w", id, err)
		}
	}()
	stack, err := layers()
	if err != nil {
		return nil, err
	}
	d := newDisk(s, id, base, size, stack)
	if d.server, err = nbd.Listen(socket, uid, d, d.log); err != nil {
		return nil, errors.Join(err, d.end())
	}
	s.mu.Lock()
	s.open[id] = d
	s.mu.Unlock()
	d.kickMerge()
	return d, nil
}

func (s *Store) claim(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.open[id]; there {
		return fmt.Errorf("disk %s is open", id)
	}
	s.open[id] = nil
	return nil
}

func (s *Store) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, id)
}

// numbers finds the layers of an id, ascending. Data without a map is what an interrupted removal or creation left, and goes.
func (s *Store) numbers(id string) (list []int, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var data []int
	for _, e := range entries {
		owner, number, suffix, ok := overlayFile(e.Name())
		switch {
		case !ok || owner != id:
		case suffix == mapSuffix:
			list = append(list, number)
		default:
			data = append(data, number)
		}
	}
	for _, n := range data {
		if !slices.Contains(list, n) {
			err = errors.Join(err, removeIfThere(layerPath(s.dir, id, n)+dataSuffix))
		}
	}
	slices.Sort(list)
	return list, err
}

func (s *Store) openLayers(id string, size int64) (stack []*layer, err error) {
	defer func() {
		if err != nil {
			for _, l := range stack {
				err = errors.Join(err, l.close())
			}
		}
	}()
	numbers, err := s.numbers(id)
	if err != nil {
		return nil, err
	}
	if len(numbers) == 0 {
		return nil, ErrNoOverlay
	}
	for _, n := range numbers {
		l, err := openLayer(s.dir, id, n, size)
		if err != nil {
			return stack, err
		}
		stack = append(stack, l)
	}
	return stack, nil
}

func (s *Store) removeFiles(id string) error {
	numbers, err := s.numbers(id)
	for _, n := range numbers {
		err = errors.Join(err, (&layer{path: layerPath(s.dir, id, n)}).remove())
	}
	return err
}

// Sweep removes the overlays of all ids but those given and those that are open, and tells which files it removed.
func (s *Store) Sweep(keepIDs []string) (removed []string, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	// No disk may be opened meanwhile, so the lock is held throughout.
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		id, _, _, ok := overlayFile(e.Name())
		if !ok || slices.Contains(keepIDs, id) {
			continue
		}
		if _, open := s.open[id]; open {
			continue
		}
		path := filepath.Join(s.dir, e.Name())
		if e := removeIfThere(path); e != nil {
			err = errors.Join(err, fmt.Errorf("disk: %w", e))
			continue
		}
		removed = append(removed, path)
	}
	return removed, err
}

// empty is a base of no bytes.
type empty struct{}

func (empty) Size() int64 { return 0 }

func (empty) ReadAt(context.Context, []byte, int64) (string, error) { return "zero", nil }

func (empty) Run(int64) (int64, bool) { return 0, true }
