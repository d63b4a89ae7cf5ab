package dataplane

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

const (
	// pulseFor is how long it is believed that a host answers, or does not.
	pulseFor = time.Second
	// pulseTime is how long a host may take to answer.
	pulseTime = time.Second
	// maxPulses bounds what is remembered of hosts.
	maxPulses = 4096
)

// pulse is whether a host answers.
type pulse struct {
	at time.Time
	ok bool
	// asking is closed when the host that is being asked has answered, or has not; nil where none is asked. Who made it closes it.
	asking chan struct{}
}

// beats tells whether a host answers. Of those who want to know it at the same time one asks it.
func (h *Hosts) beats(ctx context.Context, address string) bool {
	h.mu.Lock()
	p := h.pulses[address]
	if p == nil {
		if len(h.pulses) >= maxPulses {
			clear(h.pulses)
		}
		p = &pulse{}
		h.pulses[address] = p
	}
	if h.now().Sub(p.at) < pulseFor {
		defer h.mu.Unlock()
		return p.ok
	}
	asking := p.asking
	if asking == nil {
		p.asking = make(chan struct{})
	}
	h.mu.Unlock()
	if asking == nil {
		h.feel(ctx, address, p)
	} else {
		select {
		case <-asking:
		case <-ctx.Done():
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return p.ok
}

// feel asks a host, for all who wait; so it goes on when its caller does not.
func (h *Hosts) feel(ctx context.Context, address string, p *pulse) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pulseTime)
	defer cancel()
	conn, err := h.dial(address)
	if err == nil {
		_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// Any answer of its own is a sign of life.
	p.ok = err == nil || status.Code(err) != codes.Unavailable && status.Code(err) != codes.DeadlineExceeded
	p.at = h.now()
	close(p.asking)
	p.asking = nil
}
