package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// safetyTick is how often a waiter looks although nothing woke it, in case a notification was lost.
const safetyTick = 2 * time.Second

// maxConflicts bounds how often an operation decides anew because the row was changed under it.
const maxConflicts = 10

// perform does the work that the rows say, from where it was left. Rows are those of one work.
func (s *Service) perform(ctx context.Context, rows []Sandbox) Outcome {
	switch first := rows[0]; {
	case first.State == Stopping:
		return s.performStop(ctx, first)
	case first.State == Pausing:
		return s.performPause(ctx, first)
	case first.State == Resuming:
		return s.performResume(ctx, first)
	case first.Work.Op == OpFork:
		return s.performFork(ctx, rows)
	default:
		return s.performStart(ctx, first)
	}
}

// run launches the work that the rows say.
func (s *Service) run(ctx context.Context, rows []Sandbox) *job {
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	return s.launch(s.tenant(ctx, rows[0].Tenant), rows[0].Work.ID, ids, func(ctx context.Context) Outcome { return s.perform(ctx, rows) })
}

// conclude makes the last change of work: rows are as they should become, cause is how the work failed or nil.
// It takes the work from the rows and answers the request. Where the job has lost its rows it changes nothing.
func (s *Service) conclude(ctx context.Context, rows []Sandbox, cause error, c Change, out Outcome) Outcome {
	if e := s.gone(ctx); e != nil {
		return Outcome{Err: e}
	}
	ctx, cancel := cleanup(ctx)
	defer cancel()
	out.Err = s.show(rows[0], cause)
	work := rows[0].Work
	for i := range rows {
		rows[i].finish(out.Err)
	}
	c.Update = rows
	if work.RequestID != "" {
		c.Finish = &Finish{Tenant: rows[0].Tenant, RequestID: work.RequestID, SandboxID: rows[0].ID, Outcome: out, OfRows: true}
	}
	done, err := s.apply(ctx, c)
	if err != nil {
		return Outcome{Err: s.show(rows[0], err)}
	}
	out.Sandboxes = done
	return out
}

// apply does a change and wakes who does chores.
func (s *Service) apply(ctx context.Context, c Change) ([]Sandbox, error) {
	rows, err := s.store.Apply(ctx, c)
	if err == nil && len(c.Chores) > 0 {
		select {
		case s.chores <- struct{}{}:
		default:
		}
	}
	return rows, err
}

// show makes the error that a caller may see and logs what he may not.
func (s *Service) show(sb Sandbox, err error) *Error {
	e := asError(err)
	if e != nil && e.Kind == Internal {
		s.log.Error("work failed", "sandbox_id", sb.ID, "work_id", sb.Work.ID, "op", sb.Work.Op, "host_id", sb.HostID, "error", err)
	}
	return e
}

// verdict is what to do with a request, given the row as it is.
type verdict int

const (
	// act: make the change that was decided, and do the work.
	act verdict = iota
	// settled: the row is as was asked for.
	settled
	// join: the same is under way; wait for it and answer its result.
	join
	// outwait: something else is under way; wait for its end, or for the patience to end, and decide anew.
	outwait
)

// operation is a request that moves one sandbox.
type operation struct {
	op                Op
	tenant, sandboxID string
	requestID         string
	// request is what a second call must equal to be the same.
	request any
	// patience is how long to outwait.
	patience time.Duration
	// decide changes sb to what it should become and says what to do. patient is false once the patience has ended.
	decide func(sb *Sandbox, w Work, patient bool) (verdict, error)
}

// do carries an operation out and waits for its result.
func (s *Service) do(ctx context.Context, o operation) (Sandbox, error) {
	work := Work{ID: newID(""), Op: o.op, RequestID: o.requestID}
	req := newRequest(o.tenant, o.requestID, o.op, o.request, work.ID, []string{o.sandboxID}, "")
	if out, seen, err := s.replay(ctx, req); seen || err != nil {
		return first(out), err
	}
	began := time.Now()
	for range maxConflicts {
		sb, err := s.store.Get(ctx, o.tenant, o.sandboxID)
		if err != nil {
			return Sandbox{}, err
		}
		decided := sb
		v, err := o.decide(&decided, work, time.Since(began) < o.patience)
		if err != nil {
			return Sandbox{}, err
		}
		switch v {
		case settled, join:
			if v == join {
				joined := sb.Work.ID
				sb, err = s.await(ctx, sb)
				if err == nil && sb.Work.ID != joined && (sb.State == Stopping || sb.State.Final()) && o.op != OpDelete {
					err = overtaken(sb) // As who began the work is answered.
				}
			}
			return s.record(ctx, req, sb, err)
		case outwait:
			if err := s.outwait(ctx, sb, o.patience-time.Since(began)); err != nil {
				return Sandbox{}, err
			}
			continue
		}
		c := Change{Begin: req, Update: []Sandbox{decided}}
		if sb.State == Paused && decided.State == Resuming && decided.Work.Op != OpDrain {
			c.Claim = s.claim(decided)
		}
		rows, err := s.apply(ctx, c)
		if errors.Is(err, ErrConflict) {
			continue
		}
		if seen := (*Seen)(nil); errors.As(err, &seen) {
			out, err := s.answer(ctx, seen.Request, req)
			return first(out), err
		}
		if err != nil {
			return Sandbox{}, err
		}
		s.evictFrom(sb)
		out, err := s.result(ctx, rows)
		return first(out), err
	}
	return Sandbox{}, asError(ErrConflict)
}

// result launches work and waits for how it ends, wherever that is: a replica that was slow to renew its lease has lost its job to another, but
// the work goes on, and who asked for it is not told otherwise.
func (s *Service) result(ctx context.Context, rows []Sandbox) (Outcome, error) {
	out, err := s.run(ctx, rows).wait(ctx)
	if !errors.Is(err, Aborted) {
		return out, err
	}
	ended := make([]Sandbox, len(rows))
	for i, sb := range rows {
		now, e := s.store.Get(ctx, sb.Tenant, sb.ID)
		if e != nil || now.Work.ID != sb.Work.ID {
			return out, err // Another operation has ended it.
		}
		if ended[i], e = s.await(ctx, now); e != nil {
			return Outcome{Sandboxes: ended[:1]}, e
		}
		if ended[i].Work.ID != sb.Work.ID {
			return Outcome{}, overtaken(ended[i])
		}
	}
	// What else it came to stands with the request, if it has an id.
	if id := rows[0].Work.RequestID; id != "" {
		if r, e := s.store.Request(ctx, rows[0].Tenant, id); e == nil && r.Outcome != nil {
			return *r.Outcome, r.Outcome.failure()
		}
	}
	return Outcome{Sandboxes: ended}, nil
}

// record answers a request that had nothing to do itself, and keeps the answer for a second call.
func (s *Service) record(ctx context.Context, req *Request, sb Sandbox, cause error) (Sandbox, error) {
	if req == nil || ctx.Err() != nil {
		return sb, cause
	}
	req.Outcome = &Outcome{Sandboxes: []Sandbox{sb}, Err: asError(cause)}
	_, err := s.apply(ctx, Change{Begin: req})
	if seen := (*Seen)(nil); errors.As(err, &seen) {
		out, err := s.answer(ctx, seen.Request, req)
		return first(out), err
	}
	if err != nil {
		return Sandbox{}, err
	}
	return sb, cause
}

func first(o Outcome) Sandbox {
	if len(o.Sandboxes) == 0 {
		return Sandbox{}
	}
	return o.Sandboxes[0]
}

// await waits until the work that is under way on a row has ended, wherever it is done, and returns the row and how the
// work failed.
func (s *Service) await(ctx context.Context, sb Sandbox) (Sandbox, error) {
	if j := s.job(sb.Work.ID); j != nil {
		out, err := j.wait(ctx)
		if i := slices.IndexFunc(out.Sandboxes, func(o Sandbox) bool { return o.ID == sb.ID }); i >= 0 {
			return out.Sandboxes[i], err
		}
		if err != nil && !errors.Is(err, Aborted) { // Aborted: another has taken it over, and the row will say how it ends.
			return Sandbox{}, err
		}
	}
	wake, stop := s.store.Subscribe(sb.Tenant, sb.ID)
	defer stop()
	tick := time.NewTicker(safetyTick)
	defer tick.Stop()
	for {
		now, err := s.store.Get(ctx, sb.Tenant, sb.ID)
		switch {
		case err != nil:
			return Sandbox{}, err
		case now.Work.ID != sb.Work.ID:
			return now, nil
		case !now.State.Working():
			if now.WorkError != nil {
				return now, now.WorkError
			}
			return now, nil
		}
		select {
		case <-wake:
		case <-tick.C:
		case <-ctx.Done():
			return Sandbox{}, ctx.Err()
		}
	}
}

// outwait is await for at most a time; only the caller's end is an error.
func (s *Service) outwait(ctx context.Context, sb Sandbox, d time.Duration) error {
	bounded, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	_, err := s.await(bounded, sb)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var e *Error
	if err == nil || errors.As(err, &e) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// lost is the error of work whose rows another operation has taken. What the work had started on hosts is ended: the row
// does not account for it any more.
func (s *Service) lost(ctx context.Context, sb Sandbox) Outcome {
	if e := s.gone(ctx); e != nil && e.Kind == Unavailable {
		return Outcome{Err: e}
	}
	ctx, cancel := cleanup(ctx)
	defer cancel()
	rows, err := s.store.Find(ctx, []string{sb.ID})
	if err != nil {
		return Outcome{Err: s.show(sb, err)}
	}
	now := rows[sb.ID]
	if sb.Work.Placed && (now.HostID != sb.HostID || now.State.Final() || now.State == Stopping || now.State == Paused) {
		s.destroy(ctx, sb.HostID, sb.ID, sb.Work.RestoreID)
	}
	now.ID = sb.ID
	return Outcome{Err: overtaken(now)}
}

// overtaken is the answer to who asked for work that another operation has ended.
func overtaken(now Sandbox) *Error {
	state := string(now.State)
	if state == "" {
		state = "gone"
	}
	return &Error{
		Kind: Aborted, Reason: "CONCURRENT_CHANGE",
		Message: fmt.Sprintf("sandbox %s was changed by another operation meanwhile; it is %s now", now.ID, state),
		Meta:    map[string]string{"sandbox_id": now.ID, "state": state},
	}
}

// destroy ends a sandbox's life on a host, now or as a chore; restoreID as in Hosts.Destroy.
func (s *Service) destroy(ctx context.Context, hostID, id, restoreID string) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	err := s.hosts.Destroy(ctx, hostID, id, restoreID)
	if err == nil {
		return
	}
	s.log.Warn("VM could not be ended; will be tried again", "sandbox_id", id, "host_id", hostID, "error", err)
	if _, err := s.apply(ctx, Change{Chores: []Chore{{Kind: DestroyVM, SandboxID: id, HostID: hostID}}}); err != nil {
		s.log.Error("chore could not be written; the reconciler will find the VM", "sandbox_id", id, "host_id", hostID, "error", err)
	}
}

// leftovers are the chores of a sandbox that is gone; live are those of a life that ended with a pause.
func leftovers(sb Sandbox) []Chore {
	c := liveLeftovers(sb)
	if sb.SnapshotID != "" {
		c = append(c, Chore{Kind: DropSnapshot, SandboxID: sb.ID, SnapshotID: sb.SnapshotID, HostID: sb.home()})
	}
	return c
}

func liveLeftovers(sb Sandbox) []Chore {
	var c []Chore
	if sb.BaseSnapshotID != "" {
		c = append(c, Chore{Kind: DropSnapshot, SandboxID: sb.ID, SnapshotID: sb.BaseSnapshotID, HostID: sb.HostID})
	}
	switch {
	case sb.SourceSnapshotID == "":
	case sb.Kind == Fork:
		c = append(c, Chore{Kind: DropSnapshot, SandboxID: sb.ID, SnapshotID: sb.SourceSnapshotID, HostID: sb.HostID})
	default:
		c = append(c, Chore{Kind: ReleaseLease, SandboxID: sb.ID, SnapshotID: sb.SourceSnapshotID})
	}
	return c
}

// home is the host that has the pause snapshot's files.
func (s *Sandbox) home() string {
	if s.Work.HomeHostID != "" {
		return s.Work.HomeHostID
	}
	return s.HostID
}
