package snapstore

import (
	"container/list"
	"context"
	"errors"
	"sync"

	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// frameKey names a frame of a build.
type frameKey struct {
	build snapfmt.ID
	frame int
}

// frameCache keeps the frames that were unpacked last, because who reads a block will soon read its neighbours. It is safe
// for concurrent use.
type frameCache struct {
	limit int64 // bytes

	mu      sync.Mutex // guards all below
	size    int64
	entries map[frameKey]*list.Element
	recent  list.List // of *cachedFrame, the latest used first
	flights map[frameKey]*frameFlight
}

type cachedFrame struct {
	key  frameKey
	data []byte // never changed
}

// frameFlight is a frame being read; data, from and err may be read once done is closed.
type frameFlight struct {
	done chan struct{}
	data []byte
	from string
	err  error
}

func newFrameCache(limit int64) *frameCache {
	return &frameCache{limit: limit, entries: map[frameKey]*list.Element{}, flights: map[frameKey]*frameFlight{}}
}

// has returns a frame if it is there.
func (c *frameCache) has(key frameKey) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hasLocked(key)
}

func (c *frameCache) hasLocked(key frameKey) ([]byte, bool) {
	e, ok := c.entries[key]
	if !ok {
		return nil, false
	}
	c.recent.MoveToFront(e)
	return e.Value.(*cachedFrame).data, true
}

// get returns a frame, which must not be written to. Of those who want it at the same time one loads it.
func (c *frameCache) get(ctx context.Context, key frameKey, load func() (data []byte, from string, err error)) ([]byte, string, error) {
	for {
		c.mu.Lock()
		if data, ok := c.hasLocked(key); ok {
			c.mu.Unlock()
			return data, fromLocal, nil
		}
		f := c.flights[key]
		if f == nil {
			f = &frameFlight{done: make(chan struct{})}
			c.flights[key] = f
			c.mu.Unlock()
			f.data, f.from, f.err = load()
			c.land(key, f)
			return f.data, f.from, f.err
		}
		c.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, "", context.Cause(ctx)
		}
		if f.err != nil && (errors.Is(f.err, context.Canceled) || errors.Is(f.err, context.DeadlineExceeded)) && ctx.Err() == nil {
			continue // it was given up by who loaded it
		}
		return f.data, f.from, f.err
	}
}

func (c *frameCache) land(key frameKey, f *frameFlight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.flights, key)
	close(f.done)
	if f.err != nil {
		return
	}
	c.entries[key] = c.recent.PushFront(&cachedFrame{key, f.data})
	c.size += int64(len(f.data))
	for c.size > c.limit {
		c.remove(c.recent.Back())
	}
}

func (c *frameCache) remove(e *list.Element) {
	f := c.recent.Remove(e).(*cachedFrame)
	delete(c.entries, f.key)
	c.size -= int64(len(f.data))
}

// drop forgets the frames of a build.
func (c *frameCache) drop(id snapfmt.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.entries {
		if key.build == id {
			c.remove(e)
		}
	}
}
