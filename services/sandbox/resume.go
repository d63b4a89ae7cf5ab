package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
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
		decide: func(sb *Sandbox, w Work, _ bool) (verdict, error) {
			w.Until, _ = ctx.Deadline()
			return s.decideResume(sb, w, r)
		},
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
		err = now.live(sb.Work.RestoreID)
	}
	if err != nil {
		now = sb
		now.HostID = sb.Work.HomeHostID
		if sb.Work.Op == OpDrain {
			now.Reason = fmt.Sprintf("host %s was emptied, and it could not be resumed elsewhere: %s", now.HostID, asError(err).Message)
		}
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
//
// Until the snapshot is durable that is the host which has it. A resume that is to be elsewhere, because it is pinned or because that host
// cannot take it, waits until it is durable, and is refused only if that takes too long or cannot be.
//
// Chosen: to wait, which an upload takes seconds. Rejected: to start elsewhere at once with the first host as the peer that serves the
// memory: until the upload's end the sandbox would need two hosts to live, and the death of the one that it has left would take it along.
// What is a template's is spawned so, because nothing is lost with its copies. Rejected too: to refuse at once, which leaves the waiting to
// every client.
func (s *Service) startAgain(ctx context.Context, sb Sandbox) (Sandbox, Started, error) {
	place := s.place(sb)
	place.SnapshotID, place.HostID = sb.SnapshotID, sb.Work.PinHostID
	start := Start{Kind: Resume, SnapshotID: sb.SnapshotID, RestoreID: sb.Work.RestoreID, Policy: sb.Work.RestorePolicy}
	m, err := s.pauseManifest(ctx, sb)
	if err != nil {
		return sb, Started{}, err
	}
	place.Needs = m.Needs
	home, pin := sb.Work.HomeHostID, sb.Work.PinHostID
	switch {
	case m.Durable:
	case pin == "":
		place.HostID = home
		sb, started, err := s.startSomewhere(ctx, sb, place, start)
		if !errors.Is(err, Exhausted) {
			return sb, started, err
		}
		if m, e := s.elsewhere(ctx, sb, ""); e == nil {
			s.log.Info("the host that has the snapshot cannot take it; it is durable now and may go elsewhere", "sandbox_id", sb.ID, "host_id", home, "error", err)
			place.HostID, place.Needs = "", m.Needs
			sb.Work.Placed, sb.Work.ReservationID = false, ""
			return s.startSomewhere(ctx, sb, place, start)
		} else if sb.Durable && errors.Is(e, Unavailable) {
			return sb, Started{}, e // Others could take it, if the registry could be asked.
		}
		return sb, started, err
	case pin != home && !sb.Work.Placed:
		if m, err = s.elsewhere(ctx, sb, pin); err != nil {
			return sb, Started{}, err
		}
		place.Needs = m.Needs
	}
	return s.startSomewhere(ctx, sb, place, start)
}

// pauseManifest is what the registry knows of a paused sandbox's snapshot; nothing where it has not heard of it, or cannot be asked: then
// its host has it in any case.
func (s *Service) pauseManifest(ctx context.Context, sb Sandbox) (Manifest, error) {
	m, err := s.snapshots.Manifest(ctx, sb.Tenant, sb.SnapshotID)
	if errors.Is(err, NotFound) || errors.Is(err, Unavailable) {
		return Manifest{}, nil
	}
	return m, err
}

// lostEvery is after how many looks at the registry the scheduler is asked whether the host is lost.
const lostEvery = 5

// elsewhere waits until another host than the one which made it can have a paused sandbox's snapshot: because it is durable, or because
// that host has it already. It gives up, with the reason, when whoever asked does, after Timing.Durable, and at once where it cannot be
// because the host is lost. Where it is durable by its row, the registry is waited for.
func (s *Service) elsewhere(ctx context.Context, sb Sandbox, host string) (Manifest, error) {
	patience := s.timing.Durable
	if !sb.Work.Until.IsZero() {
		patience = min(patience, time.Until(sb.Work.Until)-s.timing.Reply)
	}
	began := time.Now()
	giveUp := time.NewTimer(max(patience, 0))
	defer giveUp.Stop()
	tick := time.NewTicker(durablePoll)
	defer tick.Stop()
	for n := 0; ; n++ {
		m, err := s.snapshots.Manifest(ctx, sb.Tenant, sb.SnapshotID)
		// The registry has it, and cannot be asked for it now.
		hidden := sb.Durable && errors.Is(err, Unavailable)
		switch {
		case hidden:
		case errors.Is(err, NotFound), errors.Is(err, Unavailable): // The registry has not heard of it, perhaps.
			m = Manifest{}
		case err != nil || m.Durable || host != "" && slices.Contains(m.HostIDs, host):
			return m, err
		}
		if !hidden && n%lostEvery == 0 && s.isLost(ctx, sb.Work.HomeHostID) {
			return m, sb.notDurable(Precondition, fmt.Sprintf("that host is lost; it resumes when %s is back", sb.Work.HomeHostID))
		}
		select {
		case <-tick.C:
		case <-giveUp.C:
			if hidden {
				return m, err
			}
			return m, sb.notDurable(Unavailable, fmt.Sprintf("it did not get there within %s; resume it on %s, or try again", time.Since(began).Round(time.Millisecond), sb.Work.HomeHostID))
		case <-ctx.Done():
			return m, ctx.Err()
		}
	}
}

func (s *Service) isLost(ctx context.Context, hostID string) bool {
	list, err := s.hosts.List(ctx)
	return err == nil && slices.ContainsFunc(list, func(h Host) bool { return h.ID == hostID && h.Lost })
}

func (s *Sandbox) notDurable(kind Kind, why string) error {
	return &Error{
		Kind: kind, Reason: "SNAPSHOT_NOT_DURABLE",
		Message: fmt.Sprintf("snapshot %s of sandbox %s is not yet in the registry and only on host %s: %s", s.SnapshotID, s.ID, s.Work.HomeHostID, why),
		Meta:    map[string]string{"sandbox_id": s.ID, "snapshot_id": s.SnapshotID, "host_id": s.Work.HomeHostID},
	}
}
