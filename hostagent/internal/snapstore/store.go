package snapstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/coveyhq/covey/hostagent/internal/image"
	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// Config of a Store. Zero values mean the defaults given here.
type Config struct {
	// Dir is where everything lies. No two agents share one.
	Dir string
	// Images are the stock images. Default: none.
	Images *image.Catalog
	// Fetcher reads what is elsewhere. Default: this host is alone.
	Fetcher Fetcher
	// Workers that compress one build at the same time. Default 2.
	Workers int
	// CacheBytes bounds the unpacked frames that are kept. Default 32 MiB.
	CacheBytes int64
	// MaxChain is how many builds a header names before its snapshot is squashed. Default 16.
	MaxChain int
	// Removed is called after a snapshot was removed from this host; perhaps so late that it is here again. It may be nil.
	Removed func(id string)
	// Healed is called after something damaged was to be replaced by what is elsewhere; ok tells whether it was. It may be nil.
	Healed func(ok bool)
	Log    *slog.Logger
}

func (c *Config) setDefaults() {
	if c.Workers <= 0 {
		c.Workers = 2
	}
	if c.CacheBytes <= 0 {
		c.CacheBytes = 32 << 20
	}
	if c.MaxChain <= 0 {
		c.MaxChain = 16
	}
	if c.Removed == nil {
		c.Removed = func(string) {}
	}
	if c.Healed == nil {
		c.Healed = func(bool) {}
	}
}

// Store keeps snapshots. It is safe for concurrent use, and implements machine.Snapshots.
type Store struct {
	conf   Config
	log    *slog.Logger
	frames *frameCache
	worker *worker

	mu     sync.Mutex        // guards all below, and what says so in entry and build
	snaps  map[string]*entry // by snapshot id
	images map[string]*entry // by image id
	builds map[snapfmt.ID]*build
	drafts map[string]bool     // ids of snapshots in the making
	gates  map[string]*keyGate // by snapshot id or image name: who fetches or converts it
}

var _ machine.Snapshots = (*Store)(nil)

// New opens the directory, which it makes if need be, and removes what a former agent left half-made. Close ends what runs in
// the background.
func New(conf Config) (*Store, error) {
	conf.setDefaults()
	var err error
	if conf.Dir, err = filepath.Abs(conf.Dir); err != nil {
		return nil, fmt.Errorf("snapstore: %w", err)
	}
	s := &Store{
		conf: conf, log: conf.Log, frames: newFrameCache(conf.CacheBytes), snaps: map[string]*entry{}, images: map[string]*entry{},
		builds: map[snapfmt.ID]*build{}, drafts: map[string]bool{}, gates: map[string]*keyGate{},
	}
	for _, d := range []string{"builds", "snapshots", "images", "drafts"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("snapstore: %w", err)
		}
	}
	if err := s.scan(); err != nil {
		return nil, fmt.Errorf("snapstore: %w", err)
	}
	s.worker = newWorker(s)
	return s, nil
}

// Close ends what runs in the background. Nothing may be pinned or in the making any more.
func (s *Store) Close() error {
	s.worker.stop()
	return nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.conf.Dir}, parts...)...)
}

// Local lists the snapshots that this host has, also those of which it has fetched only a part.
func (s *Store) Local() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id, e := range s.snaps {
		if !e.doomed {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Has tells whether anything of a snapshot is here, also where it is to be removed as soon as it is used no more.
func (s *Store) Has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snaps[id] != nil
}

// name takes references on builds; those not known yet become known. The store's lock is held.
func (s *Store) name(snapshot string, builds []Build) (list []*build) {
	for _, b := range builds {
		known := s.builds[b.ID]
		if known == nil {
			known = &build{Build: b, store: s, snapshot: snapshot, gate: newGate()}
			s.builds[b.ID] = known
		}
		known.refs++
		list = append(list, known)
	}
	return list
}

// unname gives references back, and moves the files of builds that nothing names any more into dir, from where the caller removes them.
func (s *Store) unname(builds []*build, dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, b := range builds {
		if b.refs--; b.refs > 0 {
			continue
		}
		delete(s.builds, b.ID)
		for _, suffix := range []string{"", partSuffix, marksSuffix} {
			err := os.Rename(s.buildPath(b.ID)+suffix, filepath.Join(dir, b.ID.String()+suffix))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// tempDir makes a directory below drafts.
func (s *Store) tempDir(name string) (string, error) {
	return os.MkdirTemp(s.path("drafts"), name+".")
}

// keyGate is the gate of one key; it is forgotten when nobody uses it.
type keyGate struct {
	gate  gate
	users int
}

// enter waits until nobody else has the key, and returns how to leave.
func (s *Store) enter(ctx context.Context, key string) (leave func(), err error) {
	s.mu.Lock()
	g := s.gates[key]
	if g == nil {
		g = &keyGate{gate: newGate()}
		s.gates[key] = g
	}
	g.users++
	s.mu.Unlock()
	forget := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if g.users--; g.users == 0 {
			delete(s.gates, key)
		}
	}
	if err := g.gate.enter(ctx); err != nil {
		forget()
		return nil, err
	}
	return func() {
		g.gate.leave()
		forget()
	}, nil
}
