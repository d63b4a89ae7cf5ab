package machine

import (
	"fmt"
	"slices"
	"sync"

	"github.com/coveyhq/covey/hostagent/internal/journal"
)

// Baseline bounds the processors of VMs that are booted on this host from now on. What is restored has the processor that it was saved with.
//
// Chosen: the host keeps what it was told last, on its disk, so that it holds while no scheduler is there and after a restart.
// Rejected: to tell the baseline with each start, as the first boots of images and the fallbacks of restores are the host's own.
type Baseline struct {
	// Features are the only ones that a guest may have, sorted; none: all that the host has.
	Features []string `json:"features,omitempty"`
	// Generation grows with each change in the mesh; what is older than what is known is not taken.
	Generation int64 `json:"generation"`
}

// baselineRecord names the baseline in the settings.
const baselineRecord = "cpu-baseline"

type baselineKeeper struct {
	settings *journal.Journal[Baseline]

	mu  sync.Mutex // guards now
	now Baseline
}

func openBaseline(dir string) (*baselineKeeper, error) {
	j, err := journal.Open[Baseline](dir)
	if err != nil {
		return nil, err
	}
	entries, err := j.Load()
	if err != nil {
		return nil, err
	}
	k := &baselineKeeper{settings: j}
	for _, e := range entries {
		if e.ID != baselineRecord {
			continue
		}
		if e.Err != nil {
			// To boot without it would make snapshots that other hosts cannot restore, without anybody noticing.
			return nil, fmt.Errorf("the CPU baseline: %w\nwhat to do: remove %s; the scheduler tells the host again", e.Err, dir)
		}
		k.now = e.Record
	}
	return k, nil
}

func (k *baselineKeeper) get() Baseline {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now
}

// set keeps a baseline durably, and tells whether it is another one.
func (k *baselineKeeper) set(b Baseline) (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	same := slices.Equal(k.now.Features, b.Features)
	if b.Generation < k.now.Generation || same && b.Generation == k.now.Generation {
		return false, nil
	}
	if err := k.settings.Put(baselineRecord, b); err != nil {
		return false, err
	}
	k.now = b
	return !same, nil
}

// Baseline is the one that holds.
func (h *Host) Baseline() Baseline { return h.baseline.get() }

// SetBaseline has a baseline hold for VMs that are booted from now on.
func (h *Host) SetBaseline(b Baseline) error {
	b.Features = slices.Sorted(slices.Values(b.Features))
	changed, err := h.baseline.set(b)
	if err != nil {
		return fmt.Errorf("CPU baseline: %w", err)
	}
	if changed {
		h.log.Info("CPU baseline has changed", "features", b.Features, "generation", b.Generation)
		h.changed()
	}
	return nil
}
