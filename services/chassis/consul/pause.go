package consul

import (
	"context"
	"time"
)

// Pauses between attempts grow from first to most.
const (
	firstPause = 100 * time.Millisecond
	mostPause  = 2 * time.Second
)

// pause is the waiting between failed attempts. The zero value begins with firstPause.
type pause struct{ next time.Duration }

func (p *pause) reset() { p.next = 0 }

// wait waits longer each time, until ctx ends or wake, which may be nil, gets a value.
func (p *pause) wait(ctx context.Context, wake <-chan struct{}) {
	d := max(p.next, firstPause)
	p.next = min(2*d, mostPause)
	rest(ctx, d, wake)
}

// rest waits for d, unless ctx ends or wake gets a value before.
func rest(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
	}
}
