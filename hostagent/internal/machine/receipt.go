package machine

import (
	"context"
	"slices"
	"time"
)

// Phase is one step of a start.
type Phase struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"duration"`
}

// PageSource counts the pages that came from one source; see package pager.
type PageSource struct {
	// Source is "zero", "cache", "local", "peer", "registry" or "prefetch".
	Source string `json:"source"`
	// Pages of 4 KiB, and bytes read of the source (compressed where it is).
	Pages, Bytes int64
}

// Attestation lists what was renewed at a restore.
type Attestation struct {
	EntropyReseeded bool          `json:"entropy_reseeded"`
	ClockStep       time.Duration `json:"clock_step"`
	MachineID       string        `json:"machine_id"`
	Hostname        string        `json:"hostname"`
	StreamsEnded    int           `json:"streams_ended"`
}

// Receipt is the record of one start.
type Receipt struct {
	RestoreID string `json:"restore_id"`
	SandboxID string `json:"sandbox_id"`
	Kind      Kind   `json:"kind"`
	// SnapshotID is what it came from; of a spawned image its template.
	SnapshotID   string   `json:"snapshot_id,omitempty"`
	Generation   int      `json:"generation,omitempty"`
	MemoryBuilds []string `json:"memory_builds,omitempty"`
	DiskBuilds   []string `json:"disk_builds,omitempty"`
	// Phases are contiguous: their durations sum to Total.
	Phases []Phase       `json:"phases"`
	Total  time.Duration `json:"total"`
	// FirstExec is from acceptance to the first exec answered; 0 until there was one.
	FirstExec   time.Duration `json:"first_exec,omitempty"`
	PageSources []PageSource  `json:"-"`
	Attestation Attestation   `json:"attestation"`
	// Fallback says why memory was not restored, where the policy allowed a boot instead.
	Fallback  string    `json:"fallback,omitempty"`
	StartTime time.Time `json:"start_time"`
}

func (r Receipt) clone() Receipt {
	r.MemoryBuilds, r.DiskBuilds = slices.Clone(r.MemoryBuilds), slices.Clone(r.DiskBuilds)
	r.Phases, r.PageSources = slices.Clone(r.Phases), slices.Clone(r.PageSources)
	return r
}

// stopwatch divides the time of an operation into contiguous phases: one ends where the next begins.
type stopwatch struct {
	start, last time.Time
	phases      []Phase
	// enter is told each phase's name as it begins, and returns its context and what is called at its end; for spans.
	enter func(name string) (context.Context, func())
	// ctx is the present phase's.
	ctx   context.Context
	leave func()
}

// within is the context of the present phase, or the given one where there is none.
func (w *stopwatch) within(ctx context.Context) context.Context {
	if w.ctx == nil {
		return ctx
	}
	return w.ctx
}

func newStopwatch(enter func(string) (context.Context, func())) *stopwatch {
	now := time.Now()
	return &stopwatch{start: now, last: now, enter: enter}
}

// phase ends the present phase and begins another. Phases of the same name are counted together where they are adjacent.
func (w *stopwatch) phase(name string) {
	w.close()
	w.phases = append(w.phases, Phase{Name: name})
	if w.enter != nil {
		w.ctx, w.leave = w.enter(name)
	}
}

func (w *stopwatch) close() {
	now := time.Now()
	if n := len(w.phases); n > 0 {
		w.phases[n-1].Duration = now.Sub(w.last)
	}
	if w.leave != nil {
		w.leave()
		w.leave = nil
	}
	if len(w.phases) > 0 {
		w.last = now
	}
}

// stop ends the last phase and returns all with their sum.
func (w *stopwatch) stop() ([]Phase, time.Duration) {
	w.close()
	return w.phases, w.last.Sub(w.start)
}
