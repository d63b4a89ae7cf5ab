package firecracker

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"

	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
)

// Metrics are Firecracker's counters since the VM was started or reopened, by names like "block.read_bytes" or "seccomp.num_faults"; see
// its documentation for their meaning. Zeros are left out.
type Metrics map[string]int64

// meter adds up what Firecracker writes: each line has the increments since the one before.
type meter struct {
	mu    sync.Mutex // guards what follows
	sum   Metrics
	lines int
	wake  chan struct{} // closed and made anew with each line
}

func newMeter() *meter { return &meter{sum: Metrics{}, wake: make(chan struct{})} }

func (m *meter) add(line string) {
	var groups map[string]json.RawMessage
	if json.Unmarshal([]byte(line), &groups) != nil {
		return // half a line after the agent was away, or a VMM gone wild
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for group, text := range groups {
		var values map[string]json.RawMessage
		if json.Unmarshal(text, &values) != nil {
			continue // a time stamp
		}
		for name, text := range values {
			var n int64
			if json.Unmarshal(text, &n) == nil && n != 0 {
				m.sum[group+"."+name] += n
			}
		}
	}
	m.lines++
	close(m.wake)
	m.wake = make(chan struct{})
}

func (m *meter) look() (sum Metrics, lines int, next <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.sum), m.lines, m.wake
}

// Metrics asks for the counters as they are now.
func (v *VM) Metrics(ctx context.Context) (sum Metrics, err error) {
	err = v.Alone(ctx, func() error {
		_, before, _ := v.metrics.look()
		if err := v.do(ctx, request{"PUT", "/actions", api.Action{ActionType: api.FlushMetrics}}, nil); err != nil {
			return err
		}
		ctx, cancel := v.Bounded(ctx)
		defer cancel()
		for {
			now, lines, next := v.metrics.look()
			if lines > before {
				sum = now
				return nil
			}
			select {
			case <-next:
			case <-v.Process().Done():
				return v.Gone()
			case <-ctx.Done():
				return tether.Slow(ctx, fmt.Errorf("metrics of Firecracker: %w", context.Cause(ctx)))
			}
		}
	})
	return sum, err
}
