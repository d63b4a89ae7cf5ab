package sandbox

import (
	"context"
	"errors"
)

// Delete destroys a sandbox in any state. One that is gone is answered as it is. A pause under way is let end first, for
// a bounded time; other work under way is taken over.
func (s *Service) Delete(ctx context.Context, tenant, id, requestID string) (Sandbox, error) {
	if err := errors.Join(checkSandboxID(id), checkRequestID(requestID)); err != nil {
		return Sandbox{}, err
	}
	return s.do(ctx, operation{
		op: OpDelete, tenant: tenant, sandboxID: id, requestID: requestID, request: id, patience: s.timing.DeleteWait,
		decide: func(sb *Sandbox, w Work, patient bool) (verdict, error) {
			switch {
			case sb.State.Final():
				return settled, nil
			case sb.State == Stopping:
				return join, nil
			case sb.State == Pausing && patient:
				return outwait, nil
			}
			return act, s.beginStop(sb, w)
		},
	})
}

// beginStop gives the sandbox the work of being destroyed, which must still know what a resume under way knew.
func (s *Service) beginStop(sb *Sandbox, w Work) error {
	w.HomeHostID = sb.Work.HomeHostID
	w.SnapshotID = sb.Work.SnapshotID
	w.Saved = sb.State == Paused
	return sb.begin(Stopping, w, s.owner)
}

// performStop takes a sandbox from STOPPING to STOPPED. A host that does not do its part is left a chore.
func (s *Service) performStop(ctx context.Context, sb Sandbox) Outcome {
	chores := leftovers(sb)
	if sb.Work.SnapshotID != "" {
		// A pause that was not waited for any longer may have made its snapshot.
		chores = append(chores, Chore{Kind: DropSnapshot, SandboxID: sb.ID, SnapshotID: sb.Work.SnapshotID, HostID: sb.HostID})
	}
	if sb.HostID != "" && !sb.Work.Saved {
		if err := s.hosts.Destroy(ctx, sb.HostID, sb.ID, ""); err != nil {
			if s.gone(ctx) != nil {
				return Outcome{Err: s.gone(ctx)}
			}
			s.log.Warn("VM could not be ended; will be tried again", "sandbox_id", sb.ID, "host_id", sb.HostID, "error", err)
			chores = append(chores, Chore{Kind: DestroyVM, SandboxID: sb.ID, HostID: sb.HostID})
		}
	}
	now := sb
	err := now.end(Stopped, sb.Work.Reason)
	return s.conclude(ctx, []Sandbox{now}, err, Change{Chores: chores}, Outcome{})
}
