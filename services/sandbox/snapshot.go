package sandbox

import (
	"context"
	"errors"
	"time"
)

// CreateSnapshot saves a sandbox as a named template. A running source keeps running; of a paused one the saved state
// gets a second name in the registry.
func (s *Service) CreateSnapshot(ctx context.Context, tenant string, r SnapshotRequest) (Snapshot, error) {
	if err := r.validate(); err != nil {
		return Snapshot{}, err
	}
	body := r
	body.RequestID = ""
	workID, id := newID(""), newID(snapshotPrefix)
	req := newRequest(tenant, r.RequestID, OpSnapshot, body, workID, []string{r.SandboxID}, id)
	out, seen, err := s.replay(ctx, req)
	if !seen && err == nil {
		out, err = s.snapshot(ctx, tenant, r, req, workID, id)
	}
	if errors.Is(err, errContinue) {
		out, err = s.continueSnapshot(ctx, tenant, r)
	}
	if err != nil {
		return Snapshot{}, err
	}
	if out.Snapshot == nil {
		return Snapshot{}, &Error{Kind: Internal, Reason: "INTERNAL", Message: "the request has no snapshot in its outcome"}
	}
	return *out.Snapshot, nil
}

func (s *Service) snapshot(ctx context.Context, tenant string, r SnapshotRequest, req *Request, workID, id string) (Outcome, error) {
	sb, err := s.store.Get(ctx, tenant, r.SandboxID)
	if err != nil {
		return Outcome{}, err
	}
	if sb.State != Running && sb.State != Paused {
		return Outcome{}, sb.illegal(OpSnapshot, Running, Paused)
	}
	if req != nil {
		req.LeaseOwner = s.owner
		_, err := s.apply(ctx, Change{Begin: req})
		if seen := (*Seen)(nil); errors.As(err, &seen) {
			return s.answer(ctx, seen.Request, req)
		}
		if err != nil {
			return Outcome{}, err
		}
	}
	return s.launchSnapshot(ctx, tenant, r, workID, id).wait(ctx)
}

// countedSnapshot makes a template that counts against the quota from before its making. After an error, chores are what drops it: an
// answer may have been lost, and what was asked may be done later still.
func (s *Service) countedSnapshot(ctx context.Context, tenant string, r SnapshotRequest, id string) (Snapshot, []Chore, error) {
	if err := s.claimSnapshot(ctx, tenant, id); err != nil {
		return Snapshot{}, nil, err
	}
	snap, sb, err := s.performSnapshot(ctx, tenant, r, id)
	s.settleSnapshot(ctx, id, err == nil)
	if err == nil || sb.HostID == "" {
		return snap, nil, err
	}
	return snap, []Chore{{Kind: DropTemplate, SandboxID: sb.ID, SnapshotID: id, HostID: sb.HostID}}, err
}

// continueSnapshot does again what a worker that died had begun, with the same snapshot id.
func (s *Service) continueSnapshot(ctx context.Context, tenant string, r SnapshotRequest) (Outcome, error) {
	prior, err := s.store.Request(ctx, tenant, r.RequestID)
	if err != nil {
		return Outcome{}, err
	}
	return s.launchSnapshot(ctx, tenant, r, prior.WorkID, prior.SnapshotID).wait(ctx)
}

func (s *Service) launchSnapshot(ctx context.Context, tenant string, r SnapshotRequest, workID, id string) *job {
	return s.launch(ctx, workID, nil, func(ctx context.Context) Outcome {
		snap, chores, err := s.countedSnapshot(ctx, tenant, r, id)
		gone := s.gone(ctx)
		if gone != nil && r.RequestID != "" {
			return Outcome{Err: gone} // Whoever is asked again goes on with it.
		}
		out := Outcome{Err: s.show(Sandbox{ID: r.SandboxID}, err)}
		if err == nil {
			out.Snapshot = &snap
		} else if gone != nil {
			out.Err = gone
		}
		return s.settle(ctx, tenant, r, id, out, chores)
	})
}

// settle answers the request, if it has an id, and has what failed dropped. It returns how that ended. Where no id is repeated, what is not
// settled is dropped in the end, and so is nobody's.
func (s *Service) settle(ctx context.Context, tenant string, r SnapshotRequest, id string, out Outcome, chores []Chore) Outcome {
	c := Change{Chores: chores}
	switch {
	case r.RequestID != "":
		c.Finish = &Finish{Tenant: tenant, RequestID: r.RequestID, SandboxID: r.SandboxID, Outcome: out}
	case out.Err == nil:
		c.Forget = []Chore{{Kind: DropTemplate, SnapshotID: id}}
	case len(chores) == 0:
		return out
	}
	ctx, cancel := cleanup(ctx)
	defer cancel()
	_, err := s.apply(ctx, c)
	if err == nil {
		return out
	}
	s.log.Warn("end of a snapshot not written", "sandbox_id", r.SandboxID, "request_id", r.RequestID, "snapshot_id", id, "name", r.Name, "error", err)
	if r.RequestID == "" && out.Err == nil {
		return Outcome{Err: s.show(Sandbox{ID: r.SandboxID}, err)}
	}
	return out // With an id the request is unanswered: whoever is asked again goes on with it.
}

// unclaimed is how long after the end of all work on a template whose request has no id it is dropped, if nobody has been told of it.
const unclaimed = time.Minute

// noteMaking leaves a chore that drops a template which is about to be made, and which settle takes back before it says that it is made. If this
// replica dies in between, nobody would ever ask for the template again. A request that has an id needs none: whoever repeats it goes on
// with the same template.
//
// Chosen: a chore that is due when the work must have ended. Rejected: a lease on it that the work renews, which would only have the template
// dropped some minutes earlier.
func (s *Service) noteMaking(ctx context.Context, r SnapshotRequest, sb Sandbox, id string) error {
	if r.RequestID != "" {
		return nil
	}
	_, err := s.apply(ctx, Change{Chores: []Chore{{Kind: DropTemplate, SandboxID: sb.ID, SnapshotID: id, HostID: sb.HostID, After: s.timing.Work + unclaimed}}})
	return err
}

// performSnapshot has the template made. The sandbox that it answers is the one that it was asked of, or empty where nobody was asked.
func (s *Service) performSnapshot(ctx context.Context, tenant string, r SnapshotRequest, id string) (Snapshot, Sandbox, error) {
	sb, err := s.store.Get(ctx, tenant, r.SandboxID)
	if err != nil {
		return Snapshot{}, Sandbox{}, err
	}
	switch sb.State {
	case Running:
		if err := s.noteMaking(ctx, r, sb, id); err != nil {
			return Snapshot{}, Sandbox{}, err
		}
		snap, err := s.hosts.Snapshot(ctx, sb.HostID, sb.ID, sb.Work.Life, id, r.Name, r.Metadata)
		return snap, sb, notThere(sb, err)
	case Paused:
		if sb, err = s.awaitDurable(ctx, sb); err != nil {
			return Snapshot{}, Sandbox{}, err
		}
		if sb.State == Paused {
			if err := s.noteMaking(ctx, r, sb, id); err != nil {
				return Snapshot{}, Sandbox{}, err
			}
			snap, err := s.snapshots.CopyAs(ctx, tenant, sb.SnapshotID, id, r.Name, r.Metadata)
			return snap, sb, err
		}
	}
	return Snapshot{}, Sandbox{}, sb.illegal(OpSnapshot, Running, Paused)
}

// awaitDurable waits until a paused sandbox's snapshot is in the registry, or the sandbox is paused no more.
func (s *Service) awaitDurable(ctx context.Context, sb Sandbox) (Sandbox, error) {
	wake, stop := s.store.Subscribe(sb.Tenant, sb.ID)
	defer stop()
	tick := time.NewTicker(safetyTick)
	defer tick.Stop()
	for {
		now, err := s.store.Get(ctx, sb.Tenant, sb.ID)
		if err != nil || now.State != Paused || now.Durable {
			return now, err
		}
		m, err := s.snapshots.Manifest(ctx, now.Tenant, now.SnapshotID)
		if err != nil && !errors.Is(err, NotFound) || err == nil && m.Durable {
			return now, err
		}
		select {
		case <-wake:
		case <-tick.C:
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
}
