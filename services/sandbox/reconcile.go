package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Bounds of one pass of the reconciler.
const (
	stuckBatch   = 100
	expiredBatch = 50
	pruneEvery   = 10 * time.Minute
)

// reconciler makes the database follow what hosts do by themselves, and takes up work whose worker died. Every replica runs
// one: what it claims no other gets, and what it finds it compares-and-sets, so that who is second changes nothing.
type reconciler struct {
	s     *Service
	hosts map[string]*hostWatch
	// gone is since when a host with running sandboxes has not been heard of.
	gone   map[string]time.Time
	pruned time.Time
}

func newReconciler(s *Service) *reconciler {
	return &reconciler{s: s, hosts: map[string]*hostWatch{}, gone: map[string]time.Time{}, pruned: time.Now()}
}

// run makes passes until ctx ends and returns once all of its watches have ended.
func (r *reconciler) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(r.s.timing.Reconcile)
	defer tick.Stop()
	for {
		r.pass(ctx, &wg)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (r *reconciler) pass(ctx context.Context, wg *sync.WaitGroup) {
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"take up stuck work", r.takeUp},
		{"watch hosts", func(ctx context.Context) error { return r.watchHosts(ctx, wg) }},
		{"end expired sandboxes", r.expire},
		{"prune", r.prune},
	} {
		if err := step.do(ctx); err != nil && ctx.Err() == nil {
			r.s.log.Warn("reconciler could not "+step.name, "error", err)
		}
	}
}

// takeUp continues the work of workers that died.
func (r *reconciler) takeUp(ctx context.Context) error {
	// What this replica works on itself is not stuck, however late it renews its leases: it would only begin anew what goes on.
	if err := r.s.renew(ctx); err != nil {
		return err
	}
	rows, err := r.s.store.ClaimStuck(ctx, stuckBatch)
	if err != nil {
		return err
	}
	for _, sb := range rows {
		work, err := r.wholeWork(ctx, sb)
		if err != nil {
			r.s.log.Warn("stuck work left for later", "sandbox_id", sb.ID, "work_id", sb.Work.ID, "error", err)
			r.s.giveUp(ctx, sb.Work.ID)
			continue
		}
		r.s.log.Info("taking up work whose worker died", "sandbox_id", sb.ID, "work_id", sb.Work.ID, "state", sb.State, "op", sb.Work.Op)
		r.s.run(ctx, work)
	}
	return nil
}

// wholeWork takes the other rows of a fork too; who has claimed the first has the right to all.
func (r *reconciler) wholeWork(ctx context.Context, sb Sandbox) ([]Sandbox, error) {
	if sb.Work.Op != OpFork {
		return []Sandbox{sb}, nil
	}
	all, err := r.s.store.OfWork(ctx, sb.Work.ID)
	if err != nil {
		return nil, err
	}
	work := []Sandbox{sb}
	var others []Sandbox
	for _, o := range all {
		if o.ID != sb.ID && o.State.Working() {
			o.LeaseOwner = r.s.owner
			others = append(others, o)
		}
	}
	if len(others) == 0 {
		return work, nil
	}
	taken, err := r.s.store.Apply(ctx, Change{Update: others})
	return append(work, taken...), err
}

// watchHosts starts a watch for each host that is new and ends those of hosts that are gone.
func (r *reconciler) watchHosts(ctx context.Context, wg *sync.WaitGroup) error {
	list, err := r.s.hosts.List(ctx)
	if err != nil {
		return err
	}
	alive, heard := map[string]bool{}, map[string]time.Time{}
	for _, h := range list {
		if h.Lost {
			heard[h.ID] = h.HeardTime
			continue
		}
		alive[h.ID] = true
		if r.hosts[h.ID] == nil {
			r.hosts[h.ID] = newHostWatch(ctx, r.s, h.ID, wg)
		}
	}
	for id, w := range r.hosts {
		if !alive[id] {
			w.cancel()
			delete(r.hosts, id)
		}
	}
	return r.giveUpHosts(ctx, alive, heard)
}

// giveUpHosts makes the sandboxes of a host that has been gone for long FAILED, since it was last heard of.
func (r *reconciler) giveUpHosts(ctx context.Context, alive map[string]bool, heard map[string]time.Time) error {
	used, err := r.s.store.HostsInUse(ctx)
	if err != nil {
		return err
	}
	gone := map[string]time.Time{}
	for _, id := range used {
		if alive[id] {
			continue
		}
		since, known := r.gone[id]
		if !known {
			since = time.Now()
		}
		gone[id] = since
		if time.Since(since) < r.s.timing.HostLost {
			continue
		}
		if at := heard[id]; !at.IsZero() && at.Before(since) {
			since = at
		}
		rows, err := r.s.store.OnHost(ctx, id)
		if err != nil {
			return err
		}
		for _, sb := range rows {
			if sb.State == Running {
				r.s.found(ctx, sb, Failed, fmt.Sprintf("host %s was not heard of for %s", id, r.s.timing.HostLost), since)
			}
		}
	}
	r.gone = gone
	return nil
}

// expire ends sandboxes whose lifetime is over and whose host has not done so.
func (r *reconciler) expire(ctx context.Context) error {
	rows, err := r.s.store.Expired(ctx, r.s.timing.ExpireGrace, expiredBatch)
	if err != nil {
		return err
	}
	for _, sb := range rows {
		if sb.State == Pausing {
			continue
		}
		old := sb
		work := Work{ID: newID(""), Op: OpDelete, Reason: fmt.Sprintf("its lifetime of %d s was over", sb.MaxLifetimeSec)}
		if err := r.s.beginStop(&sb, work); err != nil {
			return err
		}
		now, err := r.s.apply(ctx, Change{Update: []Sandbox{sb}})
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		r.s.evictFrom(old)
		r.s.run(ctx, now)
	}
	return nil
}

func (r *reconciler) prune(ctx context.Context) error {
	if time.Since(r.pruned) < pruneEvery {
		return nil
	}
	r.pruned = time.Now()
	return r.s.store.Prune(ctx)
}

// found writes what became of a running sandbox, and when, without anybody having asked for it. Who was faster is right.
func (s *Service) found(ctx context.Context, sb Sandbox, to State, reason string, at time.Time) {
	now := sb
	if err := now.end(to, reason); err != nil {
		s.log.Error("unexpected end", "sandbox_id", sb.ID, "error", err)
		return
	}
	_, err := s.apply(ctx, Change{Update: []Sandbox{now}, Since: since(sb, at), Chores: leftovers(sb)})
	switch {
	case err == nil:
		s.log.Info("sandbox ended", "sandbox_id", sb.ID, "host_id", sb.HostID, "state", to, "reason", reason)
	case !errors.Is(err, ErrConflict) && ctx.Err() == nil:
		s.log.Warn("end of sandbox not written; will be found again", "sandbox_id", sb.ID, "error", err)
	}
}

// foundPaused writes that a host has paused a sandbox by itself.
func (s *Service) foundPaused(ctx context.Context, sb Sandbox, h HostSandbox) {
	now := sb
	if err := now.become(Paused); err != nil {
		s.log.Error("unexpected pause", "sandbox_id", sb.ID, "error", err)
		return
	}
	now.pausedTo(h.SnapshotID)
	now.Work.Op = OpPause // Not of a drain, whatever was done with it before.
	now.Reason = h.Reason
	c := Change{Update: []Sandbox{now}, Since: since(sb, h.StateTime), Chores: liveLeftovers(sb), Receipts: s.lastReceipt(ctx, sb)}
	_, err := s.apply(ctx, c)
	if err != nil && !errors.Is(err, ErrConflict) && ctx.Err() == nil {
		s.log.Warn("pause by host not written; will be found again", "sandbox_id", sb.ID, "error", err)
	}
}
