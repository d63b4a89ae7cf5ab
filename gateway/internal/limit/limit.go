// Package limit bounds how many calls a key and a tenant may make: a token bucket each, on every gateway, all gateways of a mesh together.
//
// Chosen: each gateway has an equal share, the rate divided by how many gateways Consul says are healthy, and counts what it serves by itself. A call costs
// nothing beside a lock, and a mesh without Consul or database goes on with the shares it had. What that costs: a client that keeps to one gateway of N gets an Nth of
// its rate, so put gateways behind something that spreads calls, and not connections alone; and in the moments after a gateway came or went,
// until all know of it, the sum may be off by its share.
//
// Rejected: buckets as rows of PostgreSQL, a write and a hop for each call. Rejected: leases of tokens through the sandbox service, which follow the
// clients wherever they go, but put its failures into the admission of calls, and refuse or let pass all while it is away. The limits protect the services
// behind a gateway; what a tenant may have is bounded by quotas, which are exact.
package limit

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// Rate is what one caller may do. The zero value means no limit.
type Rate struct {
	// PerSecond is how many calls may begin in a second, for long.
	PerSecond float64 `yaml:"per_second"`
	// Burst is how many may begin at once. Default: those of two seconds, at least one.
	Burst int `yaml:"burst"`
}

// Validate says what is wrong with a rate.
func (r Rate) Validate() error {
	switch {
	case r.PerSecond < 0:
		return fmt.Errorf("per_second: must be 0 (no limit) or more, got %g", r.PerSecond)
	case r.Burst < 0:
		return fmt.Errorf("burst: must be 0 (that of two seconds) or more, got %d", r.Burst)
	case r.Burst > 0 && r.PerSecond == 0:
		return fmt.Errorf("burst: is %d, but per_second is 0, which means no limit", r.Burst)
	}
	return nil
}

func (r Rate) burst() int {
	if r.Burst > 0 {
		return r.Burst
	}
	return max(1, int(2*r.PerSecond))
}

// maxBuckets bounds how many callers are remembered. Beyond it those with a full bucket are forgotten, which changes nothing for them.
const maxBuckets = 16384

// Limiter has a bucket for each key and each tenant.
type Limiter struct {
	key, tenant Rate
	now         func() time.Time

	mu      sync.Mutex // guards the rest
	buckets map[string]*rate.Limiter
	sharers int // gateways that have a share; at least 1
}

// New makes a Limiter.
func New(key, tenant Rate) *Limiter {
	return &Limiter{key: key, tenant: tenant, now: time.Now, buckets: map[string]*rate.Limiter{}, sharers: 1}
}

// Share says among how many gateways the rates are divided; less than 1 counts as 1. What callers have in hand is kept, within their new share.
func (l *Limiter) Share(gateways int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	gateways = max(1, gateways)
	if gateways == l.sharers {
		return
	}
	l.sharers = gateways
	now := l.now()
	for id, b := range l.buckets {
		r := l.tenant
		if strings.HasPrefix(id, ofKey) {
			r = l.key
		}
		b.SetLimitAt(now, l.limit(r))
		b.SetBurstAt(now, l.burst(r))
	}
}

// Sharers is among how many gateways the rates are divided.
func (l *Limiter) Sharers() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sharers
}

// limit and burst are this gateway's share of a rate. mu is held.
func (l *Limiter) limit(r Rate) rate.Limit { return rate.Limit(r.PerSecond / float64(l.sharers)) }
func (l *Limiter) burst(r Rate) int        { return max(1, r.burst()/l.sharers) }

// ofKey begins the names of keys' buckets; others are tenants'.
const ofKey = "key "

// Allow is nil if a call may begin now, else RESOURCE_EXHAUSTED with the time until one may. A call that is refused counts for nobody.
func (l *Limiter) Allow(tenant, key string) error {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var taken []*rate.Reservation
	for _, b := range []struct {
		whose, name string
		rate        Rate
	}{{"key", key, l.key}, {"tenant", tenant, l.tenant}} {
		if b.rate.PerSecond == 0 || b.name == "" {
			continue
		}
		r := l.bucket(b.whose+" "+b.name, b.rate, now).ReserveN(now, 1)
		taken = append(taken, r)
		if wait := r.DelayFrom(now); wait > 0 {
			for _, r := range taken {
				r.CancelAt(now)
			}
			return l.refused(b.whose, b.rate, wait)
		}
	}
	return nil
}

// bucket finds or makes a bucket. mu is held.
func (l *Limiter) bucket(id string, r Rate, now time.Time) *rate.Limiter {
	b := l.buckets[id]
	if b == nil {
		if len(l.buckets) >= maxBuckets {
			for id, b := range l.buckets {
				if b.TokensAt(now) >= float64(b.Burst()) {
					delete(l.buckets, id)
				}
			}
		}
		b = rate.NewLimiter(l.limit(r), l.burst(r))
		l.buckets[id] = b
	}
	return b
}

// refused is the error of a call too many. mu is held.
func (l *Limiter) refused(whose string, r Rate, wait time.Duration) error {
	message := fmt.Sprintf("too many calls of this %s: it may begin %g in a second, and %d at once", whose, r.PerSecond, r.burst())
	if l.sharers > 1 {
		message += fmt.Sprintf(", divided among %d gateways", l.sharers)
	}
	err := apierr.E(codes.ResourceExhausted, "RATE_LIMITED", message, "limit", whose)
	st, detailErr := status.Convert(err).WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	if detailErr != nil {
		return err
	}
	return st.Err()
}
