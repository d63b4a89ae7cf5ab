package dataplane

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

const (
	// fresh is how long a location is used without asking, while its host answers. A stale one costs a call to the wrong host, no more.
	fresh = time.Minute
	// maxLocations bounds the cache: beyond it, everything is asked for again.
	maxLocations = 65536
)

// Allowed are the methods of the data plane that clients may call.
func Allowed(fullMethod string) bool {
	switch fullMethod {
	case methodReadConsole, methodMetrics:
		return true
	}
	return strings.HasPrefix(fullMethod, "/covey.guest.v1.ProcessService/") || strings.HasPrefix(fullMethod, "/covey.guest.v1.FileService/") ||
		strings.HasPrefix(fullMethod, "/covey.guest.v1.PortService/")
}

const (
	methodReadConsole = "/covey.host.v1.HostService/ReadConsole"
	methodMetrics     = "/covey.host.v1.HostService/GetSandboxMetrics"
)

// wakes tells whether a call resumes a paused sandbox: looking at it from outside does not.
func wakes(fullMethod string) bool {
	return fullMethod != methodReadConsole && fullMethod != methodMetrics
}

// Hosts finds hosts of sandboxes.
type Hosts struct {
	locator sandboxv1.LocatorServiceClient
	dial    func(addr string) (*grpc.ClientConn, error)
	now     func() time.Time

	mu     sync.Mutex // guards all below
	known  map[place]location
	pulses map[string]*pulse // by address
}

// place is a sandbox as a tenant names it: a location tells nothing to other tenants.
type place struct{ tenant, sandbox string }

type location struct {
	address string
	at      time.Time
}

// NewHosts makes a Hosts. Dial returns a pooled connection, which the Hosts never closes.
func NewHosts(locator sandboxv1.LocatorServiceClient, dial func(addr string) (*grpc.ClientConn, error)) *Hosts {
	return &Hosts{locator: locator, dial: dial, now: time.Now, known: map[place]location{}, pulses: map[string]*pulse{}}
}

// Resolve is a relay.Resolve.
func (h *Hosts) Resolve(ctx context.Context, fullMethod, sandboxID string, refresh bool) (*grpc.ClientConn, func(), error) {
	p := place{tenant.From(ctx), sandboxID}
	h.mu.Lock()
	l, ok := h.known[p]
	h.mu.Unlock()
	if !ok || refresh || h.now().Sub(l.at) >= fresh || !h.beats(ctx, l.address) {
		res, err := h.locator.LocateSandbox(ctx, &sandboxv1.LocateSandboxRequest{SandboxId: sandboxID, TenantId: p.tenant, Wake: wakes(fullMethod)})
		switch {
		case err == nil:
			l = location{res.GetAddress(), h.now()}
			h.keep(p, l)
		case status.Code(err) == codes.Unavailable && ok && ctx.Err() == nil:
			// The sandbox service cannot be asked: what it said last is the best there is.
		default:
			h.drop(p)
			return nil, nil, err
		}
	}
	conn, err := h.dial(l.address)
	return conn, nil, err
}

// Locate asks where a sandbox is, resumes it if the call would, and so finds out whether the call can be made.
func (h *Hosts) Locate(ctx context.Context, fullMethod, sandboxID string) error {
	_, _, err := h.Resolve(ctx, fullMethod, sandboxID, true)
	return err
}

func (h *Hosts) keep(p place, l location) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.known) >= maxLocations {
		clear(h.known)
	}
	h.known[p] = l
}

// Forget has a sandbox of the caller's looked for anew: something was done to it that may have moved it.
func (h *Hosts) Forget(ctx context.Context, sandboxID string) {
	h.drop(place{tenant.From(ctx), sandboxID})
}

func (h *Hosts) drop(p place) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.known, p)
}
