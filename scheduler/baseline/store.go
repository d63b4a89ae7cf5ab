package baseline

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/coveyhq/covey/services/chassis/consul"
)

// prefix is where the keys stand; the rest of a key is the pool's label, base64url, and the value its Baseline as JSON.
const prefix = "covey/cpu-baseline/"

// Store remembers. It is safe for concurrent use.
type Store struct {
	consul *consul.Client // nil without Consul
	log    *slog.Logger
	// setting is held while a baseline is set: so what this scheduler writes last has the highest generation.
	setting chan struct{}

	mu      sync.Mutex // guards the rest
	known   bool       // what Consul has was read
	pools   map[string]Baseline
	changed chan struct{} // closed with the next change
}

// NewStore makes a store; Run must be running where there is Consul.
func NewStore(c *consul.Client, log *slog.Logger) *Store {
	return &Store{consul: c, log: log, setting: make(chan struct{}, 1), known: c == nil, pools: map[string]Baseline{}, changed: make(chan struct{})}
}

// Get is a pool's baseline; ok is false where it has none.
func (s *Store) Get(label string) (b Baseline, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b = s.pools[label]
	return b, len(b.Features) > 0
}

// For is what holds for a host with labels: without features nothing does. known is false while it is not known.
func (s *Store) For(labels map[string]string) (b Baseline, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for label, p := range s.pools {
		b.Generation = max(b.Generation, p.Generation)
		switch {
		case len(p.Features) == 0 || !in(label, labels):
		case b.Features == nil:
			b.Features = p.Features
		default:
			b.Features = Both(b.Features, p.Features)
		}
	}
	return b, s.known
}

// Changed is closed with the next change.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// knowTime bounds how long a scheduler that has just started waits for what Consul has.
const knowTime = 5 * time.Second

var errUnknown = errors.New("the baselines in Consul were not read yet")

// await waits until what Consul has is known: what is set before might be older.
func (s *Store) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, knowTime, errUnknown)
	defer cancel()
	for {
		s.mu.Lock()
		known, changed := s.known, s.changed
		s.mu.Unlock()
		if known {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Set gives a pool a baseline, durably, or without features lifts the one that it has. It returns it with its generation.
func (s *Store) Set(ctx context.Context, b Baseline) (_ Baseline, err error) {
	select {
	case s.setting <- struct{}{}:
		defer func() { <-s.setting }()
	case <-ctx.Done():
		return b, context.Cause(ctx)
	}
	if err = s.await(ctx); err != nil {
		return b, err
	}
	if s.consul == nil {
		b.Generation = s.next()
	} else if b, err = s.put(ctx, b); err != nil {
		return b, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.learn(b)
	s.tell()
	return b, nil
}

// putTries bounds how often a baseline is put anew because another scheduler was first.
const putTries = 8

// ErrContended says that other schedulers set the same pool's baseline again and again meanwhile.
var ErrContended = errors.New("other schedulers are setting the baseline of this pool")

// put stores a baseline in Consul on top of what stands there now, and gives it a generation that is higher: so the order of generations is that of the
// writes, whoever made them. What another scheduler has put meanwhile is learnt, and then replaced like any that was set before.
func (s *Store) put(ctx context.Context, b Baseline) (Baseline, error) {
	key := prefix + base64.RawURLEncoding.EncodeToString([]byte("pool:"+b.Label))
	for range putTries {
		old, index, err := s.consul.Get(ctx, key)
		if err != nil {
			return b, err
		}
		if index != 0 {
			s.takeOne(key, string(old))
		}
		b.Generation = s.next()
		value, err := json.Marshal(b)
		if err != nil {
			return b, err
		}
		if done, err := s.consul.CompareAndSet(ctx, key, value, index); done || err != nil {
			return b, err
		}
	}
	return b, ErrContended
}

// next is a generation higher than all that are known, whatever the clock says.
func (s *Store) next() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := time.Now().UnixMilli()
	for _, p := range s.pools {
		g = max(g, p.Generation+1)
	}
	return g
}

// learn takes a baseline over unless a newer one of its pool is known. mu is held.
func (s *Store) learn(b Baseline) {
	if s.pools[b.Label].Generation < b.Generation {
		s.pools[b.Label] = b
	}
}

// tell wakes who waits for changes. mu is held.
func (s *Store) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Run follows what other schedulers set, until ctx ends.
func (s *Store) Run(ctx context.Context) {
	if s.consul != nil {
		s.consul.WatchKeys(ctx, prefix, s.take)
	}
}

// take takes over what Consul has, which may be from before what was set here.
func (s *Store) take(keys map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, value := range keys {
		s.decode(prefix+key, value)
	}
	s.known = true
	s.tell()
}

// takeOne takes over what one key has.
func (s *Store) takeOne(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decode(key, value)
	s.tell()
}

// decode learns what a key has. mu is held.
func (s *Store) decode(key, value string) {
	var b Baseline
	if err := json.Unmarshal([]byte(value), &b); err != nil {
		s.log.Error("a CPU baseline in Consul cannot be read and does not hold", "key", key, "error", err)
		return
	}
	s.learn(b)
}
