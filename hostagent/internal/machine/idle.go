package machine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Run looks after the machines until ctx ends: pauses the idle, ends those whose lifetime is over, forgets old tombstones, and
// notes what they use.
func (h *Host) Run(ctx context.Context) {
	var sampling sync.WaitGroup
	sampling.Go(func() { h.sampleAlways(ctx) })
	defer sampling.Wait()
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
		if now.Sub(st.StateTime) > m.host.conf.Tombstone && !m.remembers(st) {
			m.host.spawn(func() { m.expire() })
		}
	case st.State != Running:
	case !spec.Expire.IsZero() && now.After(spec.Expire):
		m.host.spawn(func() { m.expire() })
	default:
		if m.watchCPU(now) && m.idle(now) && m.pausing.CompareAndSwap(false, true) {
			done := func() { m.pausing.Store(false) }
			if !m.host.spawn(func() { defer done(); m.pauseIdle() }) {
				done()
			}
		}
	}
}

// remembers tells a tombstone that alone knows of a snapshot: of a sandbox that was paused. It is forgotten once the snapshot was removed, by
// whoever knows of it.
func (m *Machine) remembers(st Status) bool {
	return st.State == Paused && slices.Contains(m.host.parts.Snapshots.Local(), st.SnapshotID)
}

// cpuMark is the CPU time that a VMM had used at a time. Only Run's goroutine uses it.
type cpuMark struct {
	at   time.Time
	used time.Duration
	// wanted is what Cage.Wanted told; nil where it was not asked.
	wanted map[int]time.Duration
	// rate is what was used since the mark before, in CPUs.
	rate float64
}

// always is the share of the time from which on a thread that ran, or waited to, is said to compute all the time. A thread that wakes up
// now and then stays below it even where each of its turns waits long.
const always = 0.8

// watchCPU counts computing as activity: what computes is not idle, even if nobody looks at it. That is CPU use above the threshold
// and, on a host that has too few CPUs for all, a thread that would have used more had it got one. Both are the VMM's, which costs the
// guest nothing to ask for, and an idle guest wakes up so seldom that it stays far below. The threads, of which each is a file to read, are only
// asked where neither the CPU use nor an open stream says enough; known is false where they were asked now but not before, so that
// the next tick has to tell.
func (m *Machine) watchCPU(now time.Time) (known bool) {
	if m.spec.Timeout <= 0 || m.host.conf.BusyCPU < 0 || now.Sub(m.cpu.at) < m.host.conf.Tick/2 {
		return true
	}
	m.mu.Lock()
	hold := m.hold
	m.mu.Unlock()
	if hold == nil {
		return true
	}
	used, err := hold.cage.CPUTime()
	if err != nil {
		return true // It has died; its watcher says so.
	}
	last := m.cpu
	m.cpu = cpuMark{at: now, used: used}
	first := last.at.IsZero() || used < last.used
	if !first {
		m.cpu.rate = float64(used-last.used) / float64(now.Sub(last.at))
	}
	if m.cpu.rate > m.host.conf.BusyCPU {
		m.Touch()
		return true
	}
	if m.streams.Load() > 0 {
		return true
	}
	if m.cpu.wanted, err = hold.cage.Wanted(); err != nil || first {
		return true
	}
	if m.cpu.starved(last) {
		m.Touch()
	}
	return last.wanted != nil
}

// starved tells whether a thread wanted a CPU nearly all the time since the mark before.
func (c cpuMark) starved(last cpuMark) bool {
	for id, wanted := range c.wanted {
		if before, was := last.wanted[id]; was && float64(wanted-before) > always*float64(c.at.Sub(last.at)) {
			return true
		}
	}
	return false
}

// idle tells whether nothing has used the sandbox for its timeout, nor does now.
func (m *Machine) idle(now time.Time) bool {
	used := time.Unix(0, m.lastActive.Load())
	if m.takenBack.After(used) {
		used = m.takenBack
	}
	return m.spec.Timeout > 0 && m.streams.Load() == 0 && now.Sub(used) > m.spec.Timeout
}

func (m *Machine) expire() {
	if err := m.end(context.Background(), nil, Stopped, "its lifetime was over", ErrDestroyed); err != nil {
		m.log.Warn("sandbox whose lifetime is over could not be ended; will be tried again", "error", err)
	}
}

// quiet says what CPU use counts as none.
func (c *Config) quiet() string {
	if c.BusyCPU < 0 {
		return "CPU use does not count"
	}
	return fmt.Sprintf("at most %.0f %% of a CPU in use", c.BusyCPU*100)
}

const (
	// metricsTime bounds the question to the guest whether a process of its holds the timer.
	metricsTime = 2 * time.Second
	// deafAsks is how often in a row, a tick apart, a guest may leave that question without an answer. On a busy host one is late now and then.
	deafAsks = 5
)

// pauseIdle pauses the sandbox, unless a process in it holds the timer or it has been used meanwhile. Where its guest does not
// answer again and again it is paused all the same: that needs the VM alone.
func (m *Machine) pauseIdle() {
	ctx := context.Background()
	guest, err := m.Guest("pause")
	if err != nil {
		return
	}
	ask, cancel := context.WithTimeout(ctx, metricsTime)
	met, err := guest.Metrics(ask)
	cancel()
	switch {
	case err != nil && m.deaf.Add(1) < deafAsks:
		m.log.Info("guest does not tell whether anything holds the timer; it is asked again", "error", err)
		return
	case err == nil:
		m.deaf.Store(0)
	}
	if met.KeepAlive > 0 && err == nil {
		m.Touch()
		return
	}
	reason := fmt.Sprintf("inactive for %s: no call, no open stream, no process or lease that holds the timer, and %s", m.spec.Timeout, m.host.conf.quiet())
	still := func() bool { return m.idle(time.Now()) }
	if _, _, err := m.pause(ctx, newID("snap_"), reason, still); err != nil {
		m.log.Warn("idle sandbox could not be paused; will be tried again", "error", err)
		m.Touch()
	}
}
