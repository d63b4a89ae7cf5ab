package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxRefusals bounds how many hosts are tried for one start.
const maxRefusals = 8

// Create makes a sandbox and returns once commands can run in it.
func (s *Service) Create(ctx context.Context, tenant string, r CreateRequest) (Sandbox, error) {
	if err := r.validate(); err != nil {
		return Sandbox{}, err
	}
	sb := Sandbox{ID: newID(sandboxPrefix), Tenant: tenant, State: Pending, Metadata: r.Metadata, LeaseOwner: s.owner}
	sb.Work = Work{ID: newID(""), Op: OpCreate, RequestID: r.RequestID, RestoreID: newID(restorePrefix)}
	req := newRequest(tenant, r.RequestID, OpCreate, r, sb.Work.ID, []string{sb.ID}, "")
	if out, seen, err := s.replay(ctx, req); seen || err != nil {
		return first(out), err
	}
	var err error
	if sb.Spec, err = s.resolve(ctx, tenant, r); err != nil {
		return Sandbox{}, err
	}
	sb.SourceSnapshotID = sb.Spec.SnapshotID
	rows, err := s.apply(ctx, Change{Claim: s.claim(sb), Begin: req, Insert: []Sandbox{sb}})
	if seen := (*Seen)(nil); errors.As(err, &seen) {
		out, err := s.answer(ctx, seen.Request, req)
		return first(out), err
	}
	if err != nil {
		return Sandbox{}, err
	}
	out, err := s.result(ctx, rows)
	return first(out), err
}

// resolve finds what the template's name means: a stock image, else a snapshot of the tenant.
func (s *Service) resolve(ctx context.Context, tenant string, r CreateRequest) (Spec, error) {
	if i := slices.IndexFunc(s.images, func(img Image) bool { return img.Name == r.Template }); i >= 0 {
		return r.fromImage(s.images[i])
	}
	m, err := s.snapshots.Manifest(ctx, tenant, r.Template)
	if errors.Is(err, NotFound) {
		return Spec{}, templateNotFound(r.Template, s.images)
	}
	if err != nil {
		return Spec{}, err
	}
	return r.fromTemplate(m)
}

// performStart takes a sandbox from PENDING or STARTING to RUNNING, or to FAILED.
func (s *Service) performStart(ctx context.Context, sb Sandbox) Outcome {
	sb, started, err := s.firstStart(ctx, sb)
	if errors.Is(err, ErrConflict) {
		return s.lost(ctx, sb)
	}
	if err != nil {
		return s.failStart(ctx, sb, err)
	}
	now := sb
	if err := now.live(sb.Work.RestoreID); err != nil {
		return s.failStart(ctx, sb, err)
	}
	now.LastActiveTime = started.LastActiveTime
	out := s.conclude(ctx, []Sandbox{now}, nil, Change{Since: since(sb, started.StateTime), Receipts: receipts(sb.ID, started)}, Outcome{})
	if errors.Is(out.failure(), Aborted) {
		return s.lost(ctx, sb)
	}
	return out
}

// since is when one row came into its state.
func since(sb Sandbox, at time.Time) map[string]time.Time { return map[string]time.Time{sb.ID: at} }

func receipts(id string, st Started) map[string][]byte {
	if len(st.Receipt) == 0 {
		return nil
	}
	return map[string][]byte{id: st.Receipt}
}

// firstStart pins the snapshot that the sandbox starts from and starts it.
func (s *Service) firstStart(ctx context.Context, sb Sandbox) (Sandbox, Started, error) {
	if sb.SourceSnapshotID != "" {
		err := s.persist(ctx, func() error { return s.snapshots.Lease(ctx, sb.SourceSnapshotID, holder(sb.ID)) })
		if errors.Is(err, NotFound) {
			return sb, Started{}, templateNotFound(sb.Template, s.images)
		} else if err != nil {
			return sb, Started{}, err
		}
	}
	return s.startSomewhere(ctx, sb, s.place(sb), Start{Kind: sb.Kind, SnapshotID: sb.SourceSnapshotID, RestoreID: sb.Work.RestoreID, Policy: sb.RestorePolicy})
}

// holder names a sandbox in the registry's leases.
func holder(id string) string { return "sandbox/" + id }

func (s *Service) place(sb Sandbox) PlaceRequest {
	return PlaceRequest{
		SandboxID: sb.ID, Tenant: sb.Tenant, VCPUs: sb.VCPUs, MemoryMB: sb.MemoryMB, DiskMB: sb.DiskMB,
		SnapshotID: sb.Spec.SnapshotID, Needs: sb.Needs, HostLabels: sb.HostLabels,
	}
}

// startSomewhere places a sandbox and starts it, and goes on to another host where one refuses, is out of reach or has a damaged copy of
// what the sandbox starts from: another gets its copy from the registry. Where no other fits, those out of reach are tried again for a time. The
// row is STARTING or RESUMING with its host before a host is asked, so that whoever takes over knows where to look.
// It returns the row as it is then. A host that has failed has nothing of the sandbox left, or a chore to end it.
func (s *Service) startSomewhere(ctx context.Context, sb Sandbox, place PlaceRequest, start Start) (Sandbox, Started, error) {
	var refusals []string
	var damaged error
	var away away
	for {
		if !sb.Work.Placed {
			placed, err := s.placeOnce(ctx, sb, place, start.Policy)
			if err != nil && damaged != nil {
				return sb, Started{}, damaged
			}
			if errors.Is(err, Exhausted) && away.again(ctx) {
				refusals = away.readmit(&sb, refusals)
				continue
			}
			if err != nil {
				return sb, Started{}, withRefusals(err, refusals)
			}
			sb = placed
		}
		start.Sandbox, start.RestoreID = sb, sb.Work.RestoreID
		started, err := s.hosts.Start(ctx, sb.HostID, start)
		if err == nil {
			return sb, started, nil
		}
		if s.gone(ctx) != nil {
			return sb, Started{}, ErrConflict
		}
		s.takeBack(ctx, sb, err)
		if start.SnapshotID != "" && errors.Is(err, DataLoss) {
			damaged = err
		}
		elsewhere := errors.Is(err, Exhausted) || errors.Is(err, Unavailable) || damaged != nil
		if !elsewhere || ctx.Err() != nil || place.HostID != "" || len(sb.Work.Refused) >= maxRefusals {
			return sb, Started{}, err
		}
		s.log.Info("host refused; trying another", "sandbox_id", sb.ID, "host_id", sb.HostID, "error", err)
		refusals = append(refusals, fmt.Sprintf("%s: %s", sb.HostID, asError(err).Message))
		if errors.Is(err, Unavailable) {
			away.note(sb.HostID, s.timing.Unreachable)
		}
		sb.Work.Refused = append(slices.Clone(sb.Work.Refused), sb.HostID)
		sb.Work.Placed, sb.Work.ReservationID = false, ""
	}
}

// placeOnce asks for a host and writes it into the row.
func (s *Service) placeOnce(ctx context.Context, sb Sandbox, place PlaceRequest, policy RestorePolicy) (Sandbox, error) {
	place.Exclude = sb.Work.Refused
	for try := 0; ; try++ {
		if err := s.keepApart(ctx, sb, &place); err != nil {
			return sb, err
		}
		p, err := s.placeFor(ctx, place, policy)
		if err != nil {
			return sb, err
		}
		placed, err := s.notePlaced(ctx, sb, p)
		if err == nil {
			s.log.InfoContext(ctx, "sandbox placed", "sandbox_id", sb.ID, "host_id", p.HostID, "reservation_id", p.ReservationID, "why", p.Why, "kept_off", place.Exclude)
			return placed, nil
		}
		s.unplace(ctx, p.ReservationID)
		if !errors.Is(err, ErrCrowded) || try == maxConflicts {
			return sb, err
		}
	}
}

// notePlaced writes a host into the row.
func (s *Service) notePlaced(ctx context.Context, sb Sandbox, p Placement) (Sandbox, error) {
	now := sb
	now.HostID = p.HostID
	now.Work.Placed, now.Work.ReservationID = true, p.ReservationID
	if now.State == Pending {
		if err := now.become(Starting); err != nil {
			return sb, err
		}
	}
	rows, err := s.apply(ctx, Change{Apart: sb.AntiAffinity != "", Update: []Sandbox{now}})
	if err != nil {
		return sb, err
	}
	return rows[0], nil
}

// noSuitable is the scheduler's reason where waiting does not help: every host lacks something that it will not get.
const noSuitable = "NO_SUITABLE_HOST"

// placeFor asks for a host that can do what the policy asks for: restore the memory, or where that may be given up, boot the disk.
func (s *Service) placeFor(ctx context.Context, place PlaceRequest, policy RestorePolicy) (Placement, error) {
	if policy == DiskOnly {
		place.Needs = Needs{}
	}
	p, err := s.scheduler.Place(ctx, place)
	if policy != PreferMemory || err == nil || asError(err).Reason != noSuitable {
		return p, err
	}
	place.Needs = Needs{}
	q, e := s.scheduler.Place(ctx, place)
	if e != nil {
		return p, err
	}
	s.log.Info("no host can restore the memory; one boots the disk", "sandbox_id", place.SandboxID, "host_id", q.HostID, "error", err)
	return q, nil
}

// takeBack undoes what a failed start may have left: the reservation, and where the host's answer does not say, the VM.
func (s *Service) takeBack(ctx context.Context, sb Sandbox, err error) {
	s.unplace(ctx, sb.Work.ReservationID)
	if !errors.Is(err, Exhausted) && !errors.Is(err, Invalid) {
		s.destroy(ctx, sb.HostID, sb.ID, sb.Work.RestoreID)
	}
}

func (s *Service) unplace(ctx context.Context, reservation string) {
	if reservation == "" {
		return
	}
	ctx, cancel := cleanup(ctx)
	defer cancel()
	if err := s.scheduler.Unplace(ctx, reservation); err != nil {
		s.log.Info("reservation not given back; it ends by itself", "reservation_id", reservation, "error", err)
	}
}

// withRefusals adds what hosts said to the scheduler's answer.
func withRefusals(err error, refusals []string) error {
	e := asError(err)
	if len(refusals) == 0 || e.Kind == Internal {
		return err
	}
	said := *e
	said.Meta = maps.Clone(e.Meta)
	said.Message = fmt.Sprintf("%s; hosts that refused: %s", e.Message, strings.Join(refusals, "; "))
	return &said
}

// failStart makes a sandbox that could not be started FAILED, which stays visible with the reason.
func (s *Service) failStart(ctx context.Context, sb Sandbox, cause error) Outcome {
	now := sb
	if err := now.end(Failed, s.show(sb, cause).Message); err != nil {
		return Outcome{Err: s.show(sb, err)}
	}
	return s.conclude(ctx, []Sandbox{now}, cause, Change{Chores: leftovers(sb)}, Outcome{})
}
