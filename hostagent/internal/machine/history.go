package machine

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Sampling: what a sandbox used is kept for an hour.
const (
	sampleEvery = 10 * time.Second
	keepSamples = 360
)

// Sample is what a sandbox used at one time.
type Sample struct {
	Time time.Time
	// CPU is the time of the VMM until then.
	CPU time.Duration
	// Share of its virtual CPUs that was in use since the sample before; 1 means all of them, all the time.
	Share float64
	// Private is guest memory that only this VM has, and Overlay what the disk's overlay takes, bytes.
	Private, Overlay int64
}

// history are the last samples of one machine, oldest first.
type history struct {
	mu      sync.Mutex // guards samples
	samples []Sample
}

// History is what the sandbox used in the last hour, since its start here or since the agent's.
func (m *Machine) History() []Sample {
	m.history.mu.Lock()
	defer m.history.mu.Unlock()
	return slices.Clone(m.history.samples)
}

// sampleAlways takes samples of all running machines until ctx ends.
func (h *Host) sampleAlways(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, m := range h.all() {
			m.sample(time.Now())
		}
	}
}

// sample notes what a running machine uses now. One that is ending or being saved is left out.
func (m *Machine) sample(now time.Time) {
	m.mu.Lock()
	hold := m.hold
	if m.status.State != Running {
		hold = nil
	}
	m.mu.Unlock()
	if hold == nil {
		return
	}
	s := Sample{Time: now}
	var errs [3]error
	s.CPU, errs[0] = hold.cage.CPUTime()
	s.Private, errs[1] = hold.vm.PrivateBytes()
	s.Overlay, errs[2] = hold.disk.OverlayBytes()
	for _, err := range errs {
		if err != nil {
			return // It has died; its watcher says so.
		}
	}
	m.history.add(s, m.spec.VCPUs)
}

func (h *history) add(s Sample, vcpus int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.samples); n > 0 {
		last := h.samples[n-1]
		if d := s.Time.Sub(last.Time); d > 0 && s.CPU >= last.CPU {
			s.Share = float64(s.CPU-last.CPU) / float64(d) / float64(max(vcpus, 1))
		}
		if n == keepSamples {
			h.samples = slices.Delete(h.samples, 0, 1)
		}
	}
	h.samples = append(h.samples, s)
}
