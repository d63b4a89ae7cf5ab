package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// drainers is how many sandboxes a drain moves at once: saving is bound by the host's disk, so more only makes each wait longer.
const drainers = 4

// durablePoll is how often a drain looks whether saved state has reached the registry.
const durablePoll = 200 * time.Millisecond

// DrainStep is what happened in a drain.
type DrainStep string

// Steps of a drain, as the API describes them.
const (
	DrainCordoned   DrainStep = "CORDONED"
	DrainPausing    DrainStep = "PAUSING"
	DrainPaused     DrainStep = "PAUSED"
	DrainDurable    DrainStep = "DURABLE"
	DrainResumed    DrainStep = "RESUMED"
	DrainLeftPaused DrainStep = "LEFT_PAUSED"
	DrainEnded      DrainStep = "ENDED"
	DrainFailed     DrainStep = "FAILED"
	DrainDone       DrainStep = "DONE"
)

// last tells whether the drain is through with a sandbox after this step.
func (d DrainStep) last() bool {
	return d == DrainResumed || d == DrainLeftPaused || d == DrainEnded || d == DrainFailed
}

// DrainEvent is one thing that happened in a drain.
type DrainEvent struct {
	Step      DrainStep
	SandboxID string
	// HostID is where a resumed sandbox runs.
	HostID string
	Reason string
	// Remaining still need the host, of the Total that the drain found.
	Remaining, Total int
}

// drain is one call of Drain.
//
// A sandbox that it pauses carries OpDrain in its row until somebody else moves it. So what a drain that was cut off has paused is
// resumed all the same: by the next drain, or by whoever watches the host, once its saved state is durable.
type drain struct {
	s      *Service
	hostID string

	mu sync.Mutex // guards all below, and makes calls of tell one after another
	// found are the sandboxes met so far; the value is false once one does not need the host any more.
	found map[string]bool
	tell  func(DrainEvent) error
	// broken is tell's first error.
	broken error
}

// Drain empties a host: it cordons it, pauses each sandbox there and resumes it elsewhere once its saved state no longer depends on
// the host. Tell is called with all that happens. It returns when nothing more can be done; Drain can be called again then.
func (s *Service) Drain(ctx context.Context, hostID string, tell func(DrainEvent) error) error {
	if !hostName.MatchString(hostID) {
		return field("host_id", "must be 1 to 63 characters of [A-Za-z0-9._-], got %q", clip(hostID))
	}
	if err := s.scheduler.Cordon(ctx, hostID); err != nil {
		return err
	}
	settled := time.NewTimer(s.timing.Placing)
	defer settled.Stop()
	d := &drain{s: s, hostID: hostID, found: map[string]bool{}, tell: tell}
	// What is found while waiting is moved, and then it is looked once more.
	last := false
	for first := true; ; first = false {
		rows, err := d.find(ctx)
		if err != nil {
			return err
		}
		if first {
			d.say(DrainEvent{Step: DrainCordoned})
		}
		if len(rows) == 0 && last {
			break
		}
		last = len(rows) == 0
		if last {
			select {
			case <-settled.C:
				settled.Reset(0) // It is over for good.
			case <-ctx.Done():
			}
		}
		d.moveAll(ctx, rows)
		if err := errors.Join(ctx.Err(), d.broken); err != nil {
			return err
		}
	}
	d.say(DrainEvent{Step: DrainDone})
	return d.broken
}

// find lists the sandboxes that need the host, or wait to be resumed because of a former drain, and were not met yet.
func (d *drain) find(ctx context.Context) ([]Sandbox, error) {
	rows, err := d.s.store.OnHost(ctx, d.hostID)
	if err != nil {
		return nil, err
	}
	var out []Sandbox
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, sb := range rows {
		if _, met := d.found[sb.ID]; met || sb.State == Paused && sb.Durable && !sb.drained() {
			continue
		}
		d.found[sb.ID] = true
		out = append(out, sb)
	}
	return out, nil
}

// drained tells whether a drain has paused the sandbox and nobody has moved it since.
func (s *Sandbox) drained() bool { return s.State == Paused && s.Work.Op == OpDrain }

func (d *drain) say(e DrainEvent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.Step.last() && e.Step != DrainFailed {
		d.found[e.SandboxID] = false
	}
	for _, needs := range d.found {
		e.Total++
		if needs {
			e.Remaining++
		}
	}
	if d.broken == nil {
		d.broken = d.tell(e)
	}
}

func (d *drain) moveAll(ctx context.Context, rows []Sandbox) {
	next := make(chan Sandbox)
	var wg sync.WaitGroup
	for range min(drainers, len(rows)) {
		wg.Go(func() {
			for sb := range next {
				d.say(d.move(ctx, sb))
			}
		})
	}
	for _, sb := range rows {
		next <- sb
	}
	close(next)
	wg.Wait()
}

// move brings one sandbox off the host, from whatever state it is in, and returns how that ended.
func (d *drain) move(ctx context.Context, sb Sandbox) DrainEvent {
	ctx = d.s.tenant(ctx, sb.Tenant)
	end := DrainEvent{SandboxID: sb.ID, Step: DrainFailed}
	for range maxConflicts {
		now, err := d.s.store.Get(ctx, sb.Tenant, sb.ID)
		if errors.Is(err, NotFound) {
			end.Step, end.Reason = DrainEnded, "it is gone"
			return end
		}
		if err == nil {
			var done bool
			if done, err = d.advance(ctx, now, &end); done {
				return end
			}
		}
		switch {
		case err == nil, errors.Is(err, Aborted), errors.Is(err, Precondition):
			// Somebody else has moved it, or it has ended: decide anew.
			end.Reason = "it is being changed by others all the time"
		default:
			end.Reason = asError(err).Message
			return end
		}
		if ctx.Err() != nil {
			end.Reason = "the drain was cut off"
			return end
		}
	}
	return end
}

// advance takes a sandbox one step further; done tells that end says how it ended.
func (d *drain) advance(ctx context.Context, sb Sandbox, end *DrainEvent) (done bool, err error) {
	switch {
	case sb.State.Final():
		end.Step, end.Reason = DrainEnded, sb.Reason
		return true, nil
	case sb.State.Working():
		_, err := d.s.await(ctx, sb)
		return false, err
	case sb.State == Running && sb.HostID != d.hostID:
		end.Step, end.HostID, end.Reason = DrainResumed, sb.HostID, ""
		return true, nil
	case sb.State == Running:
		d.say(DrainEvent{Step: DrainPausing, SandboxID: sb.ID})
		if _, err := d.s.drainPause(ctx, sb); err != nil {
			return false, err
		}
		d.say(DrainEvent{Step: DrainPaused, SandboxID: sb.ID})
		return false, nil
	case !sb.Durable:
		if err := d.s.untilDurable(ctx, sb); err != nil {
			return false, err
		}
		d.say(DrainEvent{Step: DrainDurable, SandboxID: sb.ID})
		return false, nil
	case !sb.drained():
		end.Step, end.Reason = DrainLeftPaused, ""
		return true, nil
	}
	if _, err := d.s.drainResume(ctx, sb); err != nil {
		if errors.Is(err, Aborted) || ctx.Err() != nil {
			return false, err
		}
		end.Step, end.Reason = DrainLeftPaused, asError(err).Message
		return true, nil
	}
	return false, nil
}

// drainPause is Pause that remembers why.
func (s *Service) drainPause(ctx context.Context, sb Sandbox) (Sandbox, error) {
	return s.do(ctx, operation{op: OpDrain, tenant: sb.Tenant, sandboxID: sb.ID, decide: s.decidePause})
}

// drainResume is Resume of what a drain has paused; one that fails may be tried by the next drain.
func (s *Service) drainResume(ctx context.Context, sb Sandbox) (Sandbox, error) {
	return s.do(ctx, operation{
		op: OpDrain, tenant: sb.Tenant, sandboxID: sb.ID,
		decide: func(sb *Sandbox, w Work, _ bool) (verdict, error) { return s.decideResume(sb, w, ResumeRequest{}) },
	})
}

// untilDurable waits for a time until a paused sandbox's snapshot is in the registry, and notes it. An Aborted error where the sandbox
// is no longer paused to it.
func (s *Service) untilDurable(ctx context.Context, sb Sandbox) error {
	giveUp := time.NewTimer(s.timing.Durable)
	defer giveUp.Stop()
	tick := time.NewTicker(durablePoll)
	defer tick.Stop()
	for {
		m, err := s.snapshots.Manifest(ctx, sb.Tenant, sb.SnapshotID)
		if err == nil && m.Durable {
			now := sb
			now.Durable = true
			_, err := s.apply(ctx, Change{Update: []Sandbox{now}})
			if errors.Is(err, ErrConflict) {
				return asError(err)
			}
			return err
		}
		select {
		case <-tick.C:
		case <-giveUp.C:
			return &Error{
				Kind: Unavailable, Reason: "SNAPSHOT_NOT_DURABLE",
				Message: fmt.Sprintf("it is paused, but its saved state %s did not reach the registry within %s; it resumes elsewhere once it has", sb.SnapshotID, s.timing.Durable),
				Meta:    map[string]string{"sandbox_id": sb.ID, "snapshot_id": sb.SnapshotID},
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		now, err := s.store.Get(ctx, sb.Tenant, sb.ID)
		if err == nil && (now.Version != sb.Version) {
			return asError(ErrConflict)
		}
	}
}

// resumeDrained resumes what a drain that was cut off has left paused. One that could not be resumed waits for the next drain.
func (s *Service) resumeDrained(ctx context.Context, sb Sandbox) {
	if !sb.drained() || !sb.Durable || sb.WorkError != nil || time.Since(sb.StateTime) < s.timing.Lease {
		return
	}
	s.log.Info("resuming a sandbox that a drain had paused", "sandbox_id", sb.ID, "host_id", sb.HostID)
	w := Work{ID: newID(""), Op: OpDrain}
	old := sb
	if v, err := s.decideResume(&sb, w, ResumeRequest{}); err != nil || v != act {
		return
	}
	rows, err := s.apply(ctx, Change{Update: []Sandbox{sb}})
	if err != nil {
		if !errors.Is(err, ErrConflict) && ctx.Err() == nil {
			s.log.Warn("sandbox that a drain had paused not resumed; will be tried again", "sandbox_id", old.ID, "error", err)
		}
		return
	}
	s.run(ctx, rows)
}
