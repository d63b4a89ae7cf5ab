package transfer

import (
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/services/chassis/consul"
)

// Peers finds other hosts.
type Peers interface {
	// Dial is a connection to a host's agent; an error where the host is not known or not well.
	Dial(hostID string) (grpc.ClientConnInterface, error)
}

// hostService is the name of host agents in Consul.
const hostService = "covey-host"

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
	d.watch(ctx, hostService, func(list []consul.Instance, _ error) {
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
	// lackTime is how long a peer that lacks a range of an object is not asked for that object: it may be fetching it itself.
	lackTime = 2 * time.Second
	// maxLacks bounds what is remembered of that.
	maxLacks = 4096
)

// health remembers which peers to leave alone.
type health struct {
	mu    sync.Mutex // guards all
	ill   map[string]illness
	lacks map[lack]time.Time
}

type illness struct {
	failures int
	until    time.Time
}

// lack is a peer that does not have all of an object.
type lack struct{ host, key string }

func newHealth() *health {
	return &health{ill: map[string]illness{}, lacks: map[lack]time.Time{}}
}

// usable are the hosts that can be asked for a range, in the order of asking, which spreads ranges over hosts. The maker is second
// at the latest: when many hosts begin at once the others have little yet.
func (h *health) usable(hosts []string, maker, key string, off int64) []string {
	h.mu.Lock()
	now := time.Now()
	hosts = slices.DeleteFunc(slices.Clone(hosts), func(host string) bool {
		return now.Before(h.ill[host].until) || now.Before(h.lacks[lack{host, key}])
	})
	h.mu.Unlock()
	weight := func(host string) uint64 {
		return maphash.String(spreadSeed, host+"\x00"+key+"\x00"+strconv.FormatInt(off/spreadUnit, 10))
	}
	slices.SortFunc(hosts, func(a, b string) int { return cmp.Compare(weight(a), weight(b)) })
	if at := slices.Index(hosts, maker); at > 1 {
		hosts = slices.Insert(slices.Delete(hosts, at, at+1), 1, maker)
	}
	return hosts
}

// spreadUnit is how much of an object is asked of the same peer, bytes; spreadSeed differs from host to host, so that they do not all go to
// the same peer for the same range.
const spreadUnit = 4 << 20

var spreadSeed = maphash.MakeSeed()

func (h *health) failed(host string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := h.ill[host]
	i.until = time.Now().Add(min(lastAvoid, firstAvoid<<min(i.failures, 6)))
	i.failures++
	h.ill[host] = i
}

func (h *health) answered(host string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ill, host)
}

func (h *health) lacking(host, key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.lacks) >= maxLacks {
		clear(h.lacks)
	}
	h.lacks[lack{host, key}] = time.Now().Add(lackTime)
}
