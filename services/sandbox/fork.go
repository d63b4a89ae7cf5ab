package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// maxForkStarts bounds how many copies of a paused sandbox are started at once.
const maxForkStarts = 8

// Fork makes running copies of a sandbox: of a running one's live state, of a paused one's saved state. All of them
// run, or none is left. It returns the copies and how long the source stood still, microseconds.
func (s *Service) Fork(ctx context.Context, tenant string, r ForkRequest) ([]Sandbox, int64, error) {
	if err := r.validate(); err != nil {
		return nil, 0, err
	}
	body := r
	body.RequestID = ""
	work := Work{ID: newID(""), Op: OpFork, RequestID: r.RequestID}
	ids := make([]string, r.Count)
	for i := range ids {
		ids[i] = newID(sandboxPrefix)
	}
	req := newRequest(tenant, r.RequestID, OpFork, body, work.ID, ids, "")
	out, seen, err := s.replay(ctx, req)
	if !seen && err == nil {
		out, err = s.fork(ctx, tenant, r, work, ids, req)
	}
	return out.Sandboxes, out.StoppedUsec, err
}

func (s *Service) fork(ctx context.Context, tenant string, r ForkRequest, work Work, ids []string, req *Request) (Outcome, error) {
	for range maxConflicts {
		source, err := s.store.Get(ctx, tenant, r.SandboxID)
		if err != nil {
			return Outcome{}, err
		}
		copies, err := s.copies(source, r, work, ids)
		if err != nil {
			return Outcome{}, err
		}
		rows, err := s.apply(ctx, Change{Claim: s.claim(copies...), Begin: req, Require: []Sandbox{source}, Insert: copies})
		if errors.Is(err, ErrConflict) {
			continue
		}
		if seen := (*Seen)(nil); errors.As(err, &seen) {
			return s.answer(ctx, seen.Request, req)
		}
		if err != nil {
			return Outcome{}, err
		}
		return s.result(ctx, rows)
	}
	return Outcome{}, asError(ErrConflict)
}

// copies are the rows of a fork. A running source's copies start on its host from a snapshot yet to be made; a paused one's
// start wherever there is room, from its saved state.
func (s *Service) copies(source Sandbox, r ForkRequest, work Work, ids []string) ([]Sandbox, error) {
	proto := Sandbox{Tenant: source.Tenant, Spec: source.Spec, LeaseOwner: s.owner, Work: work}
	switch source.State {
	case Running:
		proto.State, proto.HostID = Starting, source.HostID
		proto.Work.SnapshotID, proto.Work.Placed, proto.Work.SourceLife = newID(snapshotPrefix), true, source.Work.Life
		proto.SourceSnapshotID = proto.Work.SnapshotID
	case Paused:
		proto.State, proto.SourceSnapshotID = Pending, source.SnapshotID
	default:
		return nil, source.illegal(OpFork, Running, Paused)
	}
	proto.Kind, proto.ParentID = Fork, source.ID
	proto.Spec.SnapshotID = proto.SourceSnapshotID
	proto.Spec.AntiAffinity = "" // Until it is durable, copies can only be where their source is.
	proto.Metadata = maps.Clone(source.Metadata)
	if proto.Metadata == nil {
		proto.Metadata = map[string]string{}
	}
	maps.Copy(proto.Metadata, r.Metadata)
	if err := checkLabels("metadata", proto.Metadata); err != nil {
		return nil, err
	}
	rows := make([]Sandbox, len(ids))
	for i, id := range ids {
		rows[i] = proto
		rows[i].ID = id
		rows[i].Work.RestoreID = newID(restorePrefix)
	}
	return rows, nil
}

// performFork takes all copies to RUNNING, or all to FAILED with nothing left on any host.
func (s *Service) performFork(ctx context.Context, rows []Sandbox) Outcome {
	var out Outcome
	var c Change
	var err error
	if rows[0].Work.SnapshotID != "" {
		rows, out, c, err = s.forkLive(ctx, rows)
	} else {
		rows, c, err = s.forkSaved(ctx, rows)
	}
	if e := s.gone(ctx); e != nil {
		return Outcome{Err: e}
	}
	if err == nil {
		now := slices.Clone(rows)
		for i := range now {
			err = errors.Join(err, now[i].live(now[i].Work.RestoreID))
		}
		if err == nil {
			out = s.conclude(ctx, now, nil, c, out)
			if out.Err == nil || out.Err.Kind == Unavailable {
				return out
			}
			err = out.Err
		}
	}
	return s.failFork(ctx, rows, err)
}

// forkLive has the source's host make all copies, whose starts the host names. It returns the rows as they are then.
func (s *Service) forkLive(ctx context.Context, rows []Sandbox) ([]Sandbox, Outcome, Change, error) {
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	f, err := s.hosts.Fork(ctx, rows[0].HostID, rows[0].ParentID, rows[0].Work.SourceLife, rows[0].Work.SnapshotID, ids)
	err = notThere(Sandbox{ID: rows[0].ParentID, HostID: rows[0].HostID}, err)
	rows = slices.Clone(rows)
	for i := range rows {
		rows[i].Work.RestoreID = f.Lives[rows[i].ID]
	}
	return rows, Outcome{StoppedUsec: f.StoppedUsec}, Change{Receipts: f.Receipts}, err
}

// forkSaved starts each copy from the source's snapshot; the first that fails ends the others. It returns the rows as they
// are then.
func (s *Service) forkSaved(ctx context.Context, rows []Sandbox) ([]Sandbox, Change, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	rows = slices.Clone(rows)
	started := make([]Started, len(rows))
	slots := make(chan struct{}, maxForkStarts)
	var wg sync.WaitGroup
	var once sync.Once
	var failure error
	for i := range rows {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			var err error
			if rows[i], started[i], err = s.startCopy(ctx, rows[i]); err != nil {
				once.Do(func() { failure = err })
				cancel(errForkFailed)
			}
		})
	}
	wg.Wait()
	c := Change{Since: map[string]time.Time{}, Receipts: map[string][]byte{}}
	for i, st := range started {
		rows[i].LastActiveTime, c.Since[rows[i].ID] = st.LastActiveTime, st.StateTime
		maps.Copy(c.Receipts, receipts(rows[i].ID, st))
	}
	if failure == nil {
		failure = ctx.Err()
	}
	return rows, c, failure
}

var errForkFailed = errors.New("another copy of the fork failed")

// startCopy starts one copy of a paused sandbox.
func (s *Service) startCopy(ctx context.Context, sb Sandbox) (Sandbox, Started, error) {
	place := s.place(sb)
	place.SnapshotID, place.SpreadKey = sb.SourceSnapshotID, sb.ParentID
	m, err := s.snapshots.Manifest(ctx, sb.Tenant, sb.SourceSnapshotID)
	if err != nil && !errors.Is(err, NotFound) {
		return sb, Started{}, err
	}
	place.Needs = m.Needs
	if !m.Durable {
		parent, err := s.store.Get(ctx, sb.Tenant, sb.ParentID)
		if err != nil {
			return sb, Started{}, err
		}
		place.HostID = parent.home()
	}
	return s.startSomewhere(ctx, sb, place, Start{Kind: Fork, SnapshotID: sb.SourceSnapshotID, RestoreID: sb.Work.RestoreID, Policy: sb.RestorePolicy})
}

// failFork ends all copies that are still this work's. Those that a user has deleted meanwhile are his work's, and all are another replica's where that has
// taken the work over, because this one was too slow to renew its lease: there the fork goes on.
func (s *Service) failFork(ctx context.Context, known []Sandbox, cause error) Outcome {
	job := ctx
	ctx, cancel := cleanup(ctx)
	defer cancel()
	for range maxConflicts {
		rows, err := s.store.OfWork(ctx, known[0].Work.ID)
		if err != nil {
			return Outcome{Err: s.show(Sandbox{}, err)}
		}
		rows = slices.DeleteFunc(rows, func(sb Sandbox) bool { return !sb.State.Working() })
		if len(rows) == 0 {
			return Outcome{Err: asError(cause)}
		}
		if e := s.gone(job); e != nil {
			return Outcome{Err: e}
		}
		if s.overtook(known, rows, cause) {
			return Outcome{Err: asError(ErrConflict)}
		}
		s.destroyAll(ctx, rows)
		e := s.show(rows[0], cause)
		var c Change
		for i, sb := range rows {
			c.Chores = append(c.Chores, leftovers(sb)...)
			if err := rows[i].end(Failed, fmt.Sprintf("the fork of %s failed: %s", sb.ParentID, e.Message)); err != nil {
				return Outcome{Err: s.show(sb, err)}
			}
		}
		if out := s.conclude(ctx, rows, e, c, Outcome{}); !errors.Is(out.failure(), Aborted) || e.Kind == Aborted {
			return out
		}
	}
	return Outcome{Err: asError(cause)}
}

// overtook tells whether rows of a fork that failed were taken over: by another replica, or where it failed because they were changed, by this one, which may be
// about to go on with them.
func (s *Service) overtook(known, now []Sandbox, cause error) bool {
	return slices.ContainsFunc(now, func(sb Sandbox) bool {
		same := slices.ContainsFunc(known, func(k Sandbox) bool { return k.ID == sb.ID && k.Version == sb.Version })
		return sb.LeaseOwner != s.owner || asError(cause).Kind == Aborted && !same
	})
}

// destroyAll ends what hosts may have of the copies.
func (s *Service) destroyAll(ctx context.Context, rows []Sandbox) {
	var wg sync.WaitGroup
	for _, sb := range rows {
		if sb.HostID != "" {
			wg.Go(func() { s.destroy(ctx, sb.HostID, sb.ID, "") })
		}
	}
	wg.Wait()
}
