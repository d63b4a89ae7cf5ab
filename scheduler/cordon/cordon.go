// Package cordon remembers which hosts are cordoned, for all schedulers and over their restarts: as keys in Consul. Without Consul it is a
// scheduler's own memory.
//
// Chosen: Consul's key-value store, which is there, durable, and tells of changes without being polled. Rejected: a database of the scheduler's own, for
// one small set; and telling the hosts to remember it, because then two schedulers and a host could each believe something else.
package cordon

import (
	"context"
	"time"

	"github.com/coveyhq/covey/services/chassis/consul"
)

// prefix is where the keys stand; the rest of a key is the host's id and its value when it was cordoned.
const prefix = "covey/cordoned/"

// Book is who acts on it.
type Book interface {
	SetCordoned(hosts map[string]bool)
	Cordon(id string, cordoned bool)
}

// Store remembers.
type Store struct {
	consul *consul.Client // nil without Consul
	book   Book
}

// NewStore tells book what is remembered.
func NewStore(c *consul.Client, book Book) *Store { return &Store{consul: c, book: book} }

// Set cordons a host or lifts that, durably, and tells the book at once.
func (s *Store) Set(ctx context.Context, hostID string, cordoned bool) error {
	if s.consul != nil {
		var err error
		if cordoned {
			err = s.consul.Put(ctx, prefix+hostID, []byte(time.Now().UTC().Format(time.RFC3339)))
		} else {
			err = s.consul.Delete(ctx, prefix+hostID)
		}
		if err != nil {
			return err
		}
	}
	s.book.Cordon(hostID, cordoned)
	return nil
}

// Run follows what other schedulers set, until ctx ends.
func (s *Store) Run(ctx context.Context) {
	if s.consul == nil {
		return
	}
	s.consul.WatchKeys(ctx, prefix, func(keys map[string]string) {
		hosts := make(map[string]bool, len(keys))
		for id := range keys {
			hosts[id] = true
		}
		s.book.SetCordoned(hosts)
	})
}
