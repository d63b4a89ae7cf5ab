package machine

import (
	"context"
	"fmt"
	"time"
)

// Run looks after the machines until ctx ends: pauses the idle, ends those whose lifetime is over, forgets old tombstones.
func (h *Host) Run(ctx context.Context) {
	tick := time.NewTicker(h.conf.Tick)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, m := range h.all() {
			m.lookAfter(time.Now())
		}
	}
}

// lookAfter begins what is due for the machine now. It never waits.
func (m *Machine) lookAfter(now time.Time) {
	m.mu.Lock()
	st, busy, spec := m.statusLocked(), m.job != nil, m.spec
	m.mu.Unlock()
	switch {
	case busy:
	case !st.State.Held():
		if now.Sub(st.StateTime) > m.host.conf.Tombstone {
			m.host.forget(m)
		}
	case st.State != Running:
	case !spec.Expire.IsZero() && now.After(spec.Expire):
		m.host.spawn(func() { m.expire() })
	case m.idle(now):
		m.host.spawn(func() { m.pauseIdle() })
	}
}

// idle tells whether nothing has used the sandbox for its timeout, nor does now.
func (m *Machine) idle(now time.Time) bool {
	return m.spec.Timeout > 0 && m.streams.Load() == 0 && now.Sub(time.Unix(0, m.lastActive.Load())) > m.spec.Timeout
}

func (m *Machine) expire() {
	if err := m.end(context.Background(), nil, Stopped, "its lifetime was over", ErrDestroyed); err != nil {
		m.log.Warn("sandbox whose lifetime is over could not be ended; will be tried again", "error", err)
	}
}

// metricsTime bounds the question to the guest whether a process of its holds the timer.
const metricsTime = 2 * time.Second

// pauseIdle pauses the sandbox, unless a process in it holds the timer or it has been used meanwhile. Where its guest does not
// answer it is paused all the same: that needs the VM alone.
func (m *Machine) pauseIdle() {
	ctx := context.Background()
	guest, err := m.Guest("pause")
	if err != nil {
		return
	}
	ask, cancel := context.WithTimeout(ctx, metricsTime)
	met, err := guest.Metrics(ask)
	cancel()
	if err == nil && met.KeepAlive > 0 {
		m.Touch()
		return
	}
	reason := fmt.Sprintf("inactive for %s", m.spec.Timeout)
	still := func() bool { return m.idle(time.Now()) }
	if _, _, err := m.pause(ctx, newID("snap_"), reason, still); err != nil {
		m.log.Warn("idle sandbox could not be paused; will be tried again", "error", err)
		m.Touch()
	}
}
