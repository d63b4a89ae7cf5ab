package transfer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/hostagent/internal/snapstore"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/consul"
)

// Peers finds other hosts.
type Peers interface {
	// Dial is a connection to a host's agent; an error where the host is not known or not well.
	Dial(hostID string) (grpc.ClientConnInterface, error)
}

// Directory implements Peers with what Consul knows.
type Directory struct {
	watch func(ctx context.Context, service string, fn func([]consul.Instance, error))
	dial  func(addr string) (*grpc.ClientConn, error)

	mu    sync.Mutex        // guards addrs
	addrs map[string]string // by host id
}

// NewDirectory makes a directory of a chassis.Daemon's Watch and DialAddr. Run must be called.
func NewDirectory(watch func(context.Context, string, func([]consul.Instance, error)), dial func(string) (*grpc.ClientConn, error)) *Directory {
	return &Directory{watch: watch, dial: dial, addrs: map[string]string{}}
}

// Run follows the hosts until ctx ends. What is known stays while Consul is away.
func (d *Directory) Run(ctx context.Context) {
	d.watch(ctx, caller.Host, func(list []consul.Instance, _ error) {
		addrs := make(map[string]string, len(list))
		for _, i := range list {
			if id := i.Meta["host_id"]; id != "" && i.Passing {
				addrs[id] = i.Address
			}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.addrs = addrs
	})
}

// Dial implements Peers.
func (d *Directory) Dial(hostID string) (grpc.ClientConnInterface, error) {
	d.mu.Lock()
	addr := d.addrs[hostID]
	d.mu.Unlock()
	if addr == "" {
		return nil, fmt.Errorf("host %s is not known or not well", hostID)
	}
	return d.dial(addr)
}

// How long peers are left alone.
const (
	firstAvoid = 5 * time.Second
	lastAvoid  = time.Minute
	// A peer that lacks a range of an object is not asked for that object for a while, which grows as it goes on lacking what it is asked
	// for: it may be fetching it itself.
	firstLack = 50 * time.Millisecond
	lastLack  = 2 * time.Second
	// A peer that is late to fetch a range for others may wait itself. It is ill only if nothing at all was heard of it for so long.
	silence = 2 * time.Second
	// maxLacks bounds what is remembered of that.
	maxLacks = 4096
)

// health remembers which peers to leave alone.
type health struct {
	self string

	mu    sync.Mutex // guards all below
	ill   map[string]illness
	lacks map[lack]illness
	// late has since when a peer was late and nothing was heard of it.
	late map[string]time.Time
}

type illness struct {
	failures int
	until    time.Time
}

// ask is a peer that is asked for a range of an object.
type ask struct {
	host string
	// fetch has it fetch what it lacks.
	fetch bool
}

// lack is an ask in vain.
type lack struct {
	ask
	key string
}

func newHealth(self string) *health {
	return &health{self: self, ill: map[string]illness{}, lacks: map[lack]illness{}, late: map[string]time.Time{}}
}

// asks are the hosts that can be asked for a range, in the order of asking. All hosts order themselves alike for it, and each differently
// for other ranges. A shared range is fetched by those before this host, if they lack it, so of those that read it at the same time the
// first one fetches it for all, and no two wait for each other. The maker is second at the latest: it has everything, and when many hosts
// begin at once the others have little yet.
func (h *health) asks(hosts []string, maker, key string, off int64, shared bool) []ask {
	own := weight(h.self, key, off)
	weights := make(map[string]uint64, len(hosts))
	all := make([]ask, 0, len(hosts))
	for _, host := range hosts {
		weights[host] = weight(host, key, off)
		all = append(all, ask{host, shared && weights[host] < own})
	}
	h.mu.Lock()
	now := time.Now()
	all = slices.DeleteFunc(all, func(a ask) bool {
		return now.Before(h.ill[a.host].until) || now.Before(h.lacks[lack{a, key}].until)
	})
	h.mu.Unlock()
	slices.SortFunc(all, func(a, b ask) int { return cmp.Compare(weights[a.host], weights[b.host]) })
	at := slices.IndexFunc(all, func(a ask) bool { return a.host == maker })
	if at > 1 {
		m := all[at]
		all = slices.Insert(slices.Delete(all, at, at+1), 1, m)
	}
	return all
}

// weight is where a host stands among those that are asked for a range; the least is first.
func weight(host, key string, off int64) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", host, key, off/snapstore.FetchUnit))
	return binary.BigEndian.Uint64(sum[:])
}

func (h *health) failed(host string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.late, host)
	i := h.ill[host]
	i.until = time.Now().Add(min(lastAvoid, firstAvoid<<min(i.failures, 6)))
	i.failures++
	h.ill[host] = i
}

func (h *health) answered(a ask, key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ill, a.host)
	delete(h.late, a.host)
	delete(h.lacks, lack{a, key})
}

func (h *health) lacking(a ask, key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.late, a.host)
	i := h.lacks[lack{a, key}]
	i.until = time.Now().Add(min(lastLack, firstLack<<min(i.failures, 6)))
	i.failures++
	h.lacked(lack{a, key}, i)
}

// waited notes that a peer did not fetch a range in the time that it had, and tells whether nothing was heard of it for too long.
func (h *health) waited(a ask, key string) (silent bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	since, known := h.late[a.host]
	if !known || now.Sub(since) > lastAvoid { // It has not been asked since.
		since = now
		h.late[a.host] = since
	}
	l := lack{a, key}
	h.lacked(l, illness{failures: h.lacks[l].failures, until: now.Add(lastLack)})
	return now.Sub(since) >= silence
}

// lacked leaves a peer alone for one object. mu is held.
func (h *health) lacked(l lack, i illness) {
	if len(h.lacks) >= maxLacks {
		clear(h.lacks)
	}
	h.lacks[l] = i
}
