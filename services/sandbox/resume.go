package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Resume starts a paused sandbox again. A running one is answered as it is; a second resume while one is under way waits for it
// and answers the same.
func (s *Service) Resume(ctx context.Context, tenant string, r ResumeRequest) (Sandbox, error) {
	if err := r.validate(); err != nil {
		return Sandbox{}, err
	}
	body := r
	body.RequestID = ""
	return s.do(ctx, operation{
		op: OpResume, tenant: tenant, sandboxID: r.SandboxID, requestID: r.RequestID, request: body,
		decide: func(sb *Sandbox, w Work, _ bool) (verdict, error) { return s.decideResume(sb, w, r) },
	})
}

func (s *Service) decideResume(sb *Sandbox, w Work, r ResumeRequest) (verdict, error) {
	switch sb.State {
	case Running:
		return settled, nil
	case Resuming:
		return join, nil
	case Paused:
		w.RestoreID, w.HomeHostID = newID(restorePrefix), sb.HostID
		w.RestorePolicy, w.PinHostID = r.RestorePolicy, r.HostID
		if w.RestorePolicy == "" {
			w.RestorePolicy = sb.RestorePolicy
		}
		return act, sb.begin(Resuming, w, s.owner)
	}
	return act, sb.illegal(OpResume, Paused)
}

// performResume takes a sandbox from RESUMING to RUNNING, or back to PAUSED, from where it can be tried again.
func (s *Service) performResume(ctx context.Context, sb Sandbox) Outcome {
	sb, started, err := s.startAgain(ctx, sb)
	if errors.Is(err, ErrConflict) {
		return s.lost(ctx, sb)
	}
	now := sb
	if err == nil {
		err = now.become(Running)
	}
	if err != nil {
		now = sb
		now.HostID = sb.Work.HomeHostID
		if e := now.become(Paused); e != nil {
			err = e
		}
		return s.conclude(ctx, []Sandbox{now}, err, Change{}, Outcome{})
	}
	now.BaseSnapshotID, now.SnapshotID, now.Durable = sb.SnapshotID, "", false
	now.LastActiveTime = started.LastActiveTime
	out := s.conclude(ctx, []Sandbox{now}, nil, Change{Since: since(sb, started.StateTime), Receipts: receipts(sb.ID, started)}, Outcome{})
	if errors.Is(out.failure(), Aborted) {
		return s.lost(ctx, sb)
	}
	return out
}

// startAgain starts a paused sandbox where its snapshot can be had.
func (s *Service) startAgain(ctx context.Context, sb Sandbox) (Sandbox, Started, error) {
	place := s.place(sb)
	place.SnapshotID = sb.SnapshotID
	if err := s.locateSnapshot(ctx, sb, &place); err != nil {
		return sb, Started{}, err
	}
	return s.startSomewhere(ctx, sb, place, Start{Kind: Resume, SnapshotID: sb.SnapshotID, RestoreID: sb.Work.RestoreID, Policy: sb.Work.RestorePolicy})
}

// locateSnapshot narrows a placement to the hosts that can have the paused sandbox's snapshot: any once it is durable,
// else only the host that made it.
func (s *Service) locateSnapshot(ctx context.Context, sb Sandbox, place *PlaceRequest) error {
	home, pin := sb.Work.HomeHostID, sb.Work.PinHostID
	place.HostID = pin
	m, err := s.snapshots.Manifest(ctx, sb.Tenant, sb.SnapshotID)
	switch {
	case err == nil:
		place.VMM, place.CPUFeatures = m.VMM, m.CPUFeatures
		if m.Durable {
			return nil
		}
	case errors.Is(err, NotFound), errors.Is(err, Unavailable):
		// Not uploaded yet, or nobody to ask: its host has it in any case.
	default:
		return err
	}
	if pin != "" && pin != home && !slices.Contains(m.HostIDs, pin) {
		return &Error{
			Kind: Precondition, Reason: "SNAPSHOT_NOT_DURABLE",
			Message: fmt.Sprintf("snapshot %s of sandbox %s is not yet in the registry and only on host %s; resume it there, or wait until it is durable", sb.SnapshotID, sb.ID, home),
			Meta:    map[string]string{"sandbox_id": sb.ID, "snapshot_id": sb.SnapshotID, "host_id": home},
		}
	}
	if pin == "" {
		place.HostID = home
	}
	return nil
}
