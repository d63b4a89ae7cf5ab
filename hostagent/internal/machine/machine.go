package machine

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// Status is a sandbox as its host sees it.
type Status struct {
	Spec  Spec
	State State
	// Reason is why it is in that state where it was not asked for.
	Reason string
	// SnapshotID is what it was paused to; AutoPaused that the host did so by itself.
	SnapshotID string
	AutoPaused bool
	PID        int
	// RestoreID names the start that began this life of it; empty until there is one.
	RestoreID string
	// StateTime is when it came into its state.
	StateTime  time.Time
	LastActive time.Time
}

// Machine is one sandbox on this host. Its methods are safe for concurrent use.
type Machine struct {
	host *Host
	spec Spec
	log  *slog.Logger
	// private machines are nobody's sandbox: not in the table, the journal or the events.
	private bool
	// baseline bounds its processor if it is booted.
	baseline []string

	// lastActive is Unix nanoseconds; streams counts open streams of the data plane.
	lastActive atomic.Int64
	streams    atomic.Int64
	firstExec  atomic.Int64
	// pausing tells that the host is about to pause it by itself: its guest may be slow to answer, and is asked by one alone.
	pausing atomic.Bool
	// deaf counts the questions of the timer in a row that the guest did not answer.
	deaf    atomic.Int32
	history history
	// cpu is Run's alone.
	cpu cpuMark
	// takenBack is when this agent took it over from a former one; it never changes. The inactivity timer begins anew then: the journal
	// does not know of each use.
	takenBack time.Time

	mu sync.Mutex // guards all below
	// status without LastActive.
	status Status
	// job is the operation under way.
	job *job
	// hold is what it has of the host; only a job changes it.
	hold    *holdings
	receipt Receipt
	// saved are the results of snapshots and forks, by snapshot id, for callers that ask again.
	saved map[string]Saved
	// roomTaken tells that the ledger holds its room.
	roomTaken bool
}

// holdings is what a machine has of the host. It is written by the job that makes it and then only read, until the job that ends
// it runs undo.
type holdings struct {
	undo  undo
	base  Base
	slot  Slot
	cage  Cage
	disk  Disk
	mem   Memory
	vm    vmm.VM
	guest Guest
	// memoryFrom tells that memory was restored from base; otherwise it began as zeros.
	memoryFrom bool
	// quit is closed before the VM is ended on purpose; the watcher of its death then leaves.
	quit chan struct{}
}

// job is one operation. Its fields but err and result are set before it begins; those two before done is closed.
type job struct {
	op, key string
	cancel  context.CancelCauseFunc
	done    chan struct{}
	result  any
	err     error
}

func (h *Host) newMachine(spec Spec) *Machine {
	m := &Machine{
		host: h, spec: spec, baseline: h.baseline.get().Features, log: h.log.With("sandbox_id", spec.ID), saved: map[string]Saved{},
		status: Status{Spec: spec, State: Starting, StateTime: time.Now()},
	}
	m.Touch()
	return m
}

// ID is the sandbox's id.
func (m *Machine) ID() string { return m.spec.ID }

// Status is the sandbox as it is now.
func (m *Machine) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.statusLocked()
}

func (m *Machine) statusLocked() Status {
	st := m.status
	st.LastActive = time.Unix(0, m.lastActive.Load())
	return st
}

// Touch resets the inactivity timer.
func (m *Machine) Touch() { m.lastActive.Store(time.Now().UnixNano()) }

// Use counts a stream of the data plane, which holds the inactivity timer until the returned function is called.
func (m *Machine) Use() (end func()) {
	m.streams.Add(1)
	m.Touch()
	return sync.OnceFunc(func() {
		m.Touch()
		m.streams.Add(-1)
	})
}

// ExecAnswered notes the first exec that was answered after a start, for the receipt.
func (m *Machine) ExecAnswered() {
	if m.firstExec.Load() != 0 {
		return
	}
	m.mu.Lock()
	start := m.receipt.StartTime
	m.mu.Unlock()
	m.firstExec.CompareAndSwap(0, int64(time.Since(start)))
}

// Receipt is the record of the last start, with its page counters as they are now.
func (m *Machine) Receipt() Receipt {
	m.mu.Lock()
	r := m.receipt.clone()
	hold := m.hold
	m.mu.Unlock()
	if hold != nil && hold.mem != nil {
		r.PageSources = hold.mem.Sources()
	}
	r.FirstExec = time.Duration(m.firstExec.Load())
	return r
}

// Guest is the connection to guestd of a running machine; an *IllegalError where it does not run. A machine that is being
// saved is as good as running: the stream waits until the VM goes on, or ends with it.
func (m *Machine) Guest(op string) (Guest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.status.State != Running || m.hold == nil || m.hold.guest == nil {
		return nil, m.illegal(op, Running)
	}
	return m.hold.guest, nil
}

// AwaitPause waits while the machine is being paused: only the end tells where a call for it belongs.
func (m *Machine) AwaitPause(ctx context.Context) error {
	m.mu.Lock()
	j := m.job
	m.mu.Unlock()
	if j == nil || j.op != "pause" {
		return nil
	}
	return j.finished(ctx)
}

// illegal is called with mu held.
func (m *Machine) illegal(op string, legal ...State) error {
	return &IllegalError{ID: m.spec.ID, Op: op, State: m.status.State, Reason: m.status.Reason, Legal: legal}
}

// become changes the state and tells everyone. The journal is written by the caller.
func (m *Machine) become(s State, change func(*Status)) {
	m.mu.Lock()
	m.status.State, m.status.Reason, m.status.StateTime = s, "", time.Now()
	if change != nil {
		change(&m.status)
	}
	st := m.statusLocked()
	m.mu.Unlock()
	if !m.private {
		m.host.tell(st)
	}
}

// decision is what admits an operation, called with mu held and no job under way: an answer at once (done), an error, or neither
// to go ahead.
type decision func() (result any, done bool, err error)

// do runs one operation as a job of its own and waits for its result. The same operation with the same key joins the one
// under way. Another waits in line where the machine is RUNNING, and is illegal elsewhere. When ctx ends do returns, and the
// operation goes on.
func (m *Machine) do(ctx context.Context, op, key string, decide decision, fn func(context.Context) (any, error)) (any, error) {
	for {
		m.mu.Lock()
		if j := m.job; j != nil {
			same := j.op == op && j.key == key
			if !same && m.status.State != Running {
				_, _, err := decide()
				if err == nil {
					err = m.illegal(op, Running)
				}
				m.mu.Unlock()
				return nil, err
			}
			m.mu.Unlock()
			if same {
				return j.wait(ctx)
			}
			if err := j.finished(ctx); err != nil {
				return nil, err
			}
			continue
		}
		result, done, err := decide()
		if done || err != nil {
			m.mu.Unlock()
			return result, err
		}
		j, err := m.launch(ctx, op, key, fn)
		m.mu.Unlock()
		if err != nil {
			return nil, err
		}
		return j.wait(ctx)
	}
}

// launch is called with mu held and no job under way.
func (m *Machine) launch(ctx context.Context, op, key string, fn func(context.Context) (any, error)) (*job, error) {
	jctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	j := &job{op: op, key: key, cancel: cancel, done: make(chan struct{})}
	if !m.host.spawn(func() {
		defer cancel(nil)
		j.result, j.err = fn(jctx)
		if cause := context.Cause(jctx); cause != nil && j.err != nil && !errors.Is(j.err, cause) {
			j.err = errors.Join(cause, j.err)
		}
		m.mu.Lock()
		m.job = nil
		m.mu.Unlock()
		close(j.done)
	}) {
		cancel(nil)
		return nil, ErrClosing
	}
	m.job = j
	return j, nil
}

// wait returns the job's result, or ctx's error, whichever comes first.
func (j *job) wait(ctx context.Context) (any, error) {
	if err := j.finished(ctx); err != nil {
		return nil, err
	}
	return j.result, j.err
}

func (j *job) finished(ctx context.Context) error {
	select {
	case <-j.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
