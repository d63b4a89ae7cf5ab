// Package limit bounds how many calls a key and a tenant may make: a token bucket each, on this gateway.
//
// Chosen: each gateway counts what it serves. Rejected: counting all gateways together, which would put a database or a peer in the path of every call; the limits
// protect the services behind a gateway, and quotas, which are exact, what a tenant may have.
package limit

import (
	"fmt"
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

	mu      sync.Mutex // guards buckets
	buckets map[string]*rate.Limiter
}

// New makes a Limiter.
func New(key, tenant Rate) *Limiter {
	return &Limiter{key: key, tenant: tenant, now: time.Now, buckets: map[string]*rate.Limiter{}}
}

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
			return refused(b.whose, b.rate, wait)
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
		b = rate.NewLimiter(rate.Limit(r.PerSecond), r.burst())
		l.buckets[id] = b
	}
	return b
}

func refused(whose string, r Rate, wait time.Duration) error {
	err := apierr.E(codes.ResourceExhausted, "RATE_LIMITED", fmt.Sprintf("too many calls of this %s: it may begin %g in a second, and %d at once", whose, r.PerSecond, r.burst()), "limit", whose)
	st, detailErr := status.Convert(err).WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	if detailErr != nil {
		return err
	}
	return st.Err()
}
