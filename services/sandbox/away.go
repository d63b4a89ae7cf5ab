package sandbox

import (
	"context"
	"slices"
	"strings"
	"time"
)

// away are hosts that a start has found out of reach, or out of reach of what they need for it. What was killed is started again and what was cut off
// is mended, so where no other host fits they are tried again for a time, before the start fails.
type away struct {
	hosts  []string
	giveUp time.Time // zero before the first host
	delay  time.Duration
}

// note adds a host; from the first on there is so much patience.
func (a *away) note(host string, patience time.Duration) {
	if a.giveUp.IsZero() {
		a.giveUp, a.delay = time.Now().Add(patience), 100*time.Millisecond
	}
	a.hosts = append(a.hosts, host)
}

// again waits a moment and tells whether the hosts are worth another try.
func (a *away) again(ctx context.Context) bool {
	if len(a.hosts) == 0 || time.Now().After(a.giveUp) {
		return false
	}
	timer := time.NewTimer(a.delay)
	defer timer.Stop()
	a.delay = min(2*a.delay, 2*time.Second)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// readmit takes the hosts off a row's refused ones. What a host may still get to hear of the last try must not end the next one, so that has
// an id of its own.
func (a *away) readmit(sb *Sandbox, refusals []string) []string {
	sb.Work.Refused = slices.DeleteFunc(slices.Clone(sb.Work.Refused), func(h string) bool { return slices.Contains(a.hosts, h) })
	sb.Work.RestoreID = newID(restorePrefix)
	refusals = slices.DeleteFunc(refusals, func(said string) bool {
		host, _, _ := strings.Cut(said, ":")
		return slices.Contains(a.hosts, host)
	})
	a.hosts = nil
	return refusals
}
