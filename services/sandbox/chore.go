package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// choreBatch is how many chores are taken at once; choreKeep is how long one is tried.
const (
	choreBatch = 16
	choreKeep  = 7 * 24 * time.Hour
	choreTime  = 20 * time.Second
)

// doChores does chores as they come, and those that are due again.
func (s *Service) doChores(ctx context.Context) {
	tick := time.NewTicker(s.timing.Reconcile)
	defer tick.Stop()
	for {
		for more := true; more && ctx.Err() == nil; {
			due, err := s.store.Chores(ctx, choreBatch)
			if err != nil && ctx.Err() == nil {
				s.log.Warn("chores could not be read", "error", err)
			}
			for _, c := range due {
				s.tryChore(ctx, c)
			}
			more = len(due) == choreBatch
		}
		select {
		case <-s.chores:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// tryChore does a chore and forgets it; one that fails comes again.
func (s *Service) tryChore(ctx context.Context, c Chore) {
	bounded, cancel := context.WithTimeout(ctx, choreTime)
	defer cancel()
	log := s.log.With("chore", c.Kind, "sandbox_id", c.SandboxID, "snapshot_id", c.SnapshotID, "host_id", c.HostID, "attempts", c.Attempts)
	done, err := s.chore(bounded, c)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil && time.Since(c.CreateTime) > choreKeep:
		log.Error("chore given up", "error", err)
	case err != nil:
		log.Info("chore not done; will be tried again", "error", err)
		return
	case !done:
		return
	}
	if err := s.store.ChoreDone(ctx, c.ID); err != nil && ctx.Err() == nil {
		log.Warn("chore is done but not forgotten", "error", err)
	}
}

// chore does one; done is false where it must come again later.
func (s *Service) chore(ctx context.Context, c Chore) (done bool, err error) {
	switch c.Kind {
	case ReleaseLease:
		return true, s.snapshots.Release(ctx, c.SnapshotID, holder(c.SandboxID))
	case DestroyVM:
		return s.destroyLeft(ctx, c)
	case DropSnapshot:
		return true, s.dropSnapshot(ctx, c)
	case DropTemplate:
		return true, s.drop(ctx, c)
	}
	return false, fmt.Errorf("chore %q is of a newer release", c.Kind)
}

// destroyLeft ends what is left of a sandbox on a host, unless the row says that it belongs there. The host is looked at before the row is
// read, and only the life that was seen there is ended: one that is begun meanwhile is another.
func (s *Service) destroyLeft(ctx context.Context, c Chore) (bool, error) {
	list, err := s.hosts.Sandboxes(ctx, c.HostID)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(list, func(h HostSandbox) bool { return h.ID == c.SandboxID })
	if i < 0 {
		return true, nil
	}
	rows, err := s.store.Find(ctx, []string{c.SandboxID})
	if err != nil {
		return false, err
	}
	sb, found := rows[c.SandboxID]
	if found && sb.HostID == c.HostID {
		switch {
		case sb.State == Running:
			return true, nil
		case sb.State.Working() && sb.State != Stopping:
			return false, nil
		}
	}
	return true, s.hosts.Destroy(ctx, c.HostID, c.SandboxID, list[i].RestoreID)
}

// dropSnapshot drops a snapshot unless a sandbox names it; then the last one that does leaves the same chore.
func (s *Service) dropSnapshot(ctx context.Context, c Chore) error {
	n, err := s.store.SnapshotUsers(ctx, c.SnapshotID)
	if err != nil || n > 0 {
		return err
	}
	if err := s.snapshots.Release(ctx, c.SnapshotID, holder(c.SandboxID)); err != nil && !errors.Is(err, NotFound) {
		return err
	}
	return s.drop(ctx, c)
}

// drop drops a snapshot, whoever uses it: what is leased stays readable until it is leased no more. It is dropped from the registry, which will not
// register it any more, and from the hosts that have it. A host that is still making it finds that out when it registers it.
func (s *Service) drop(ctx context.Context, c Chore) error {
	hosts := []string{c.HostID}
	if m, err := s.snapshots.Manifest(ctx, "", c.SnapshotID); err == nil {
		hosts = append(hosts, m.HostIDs...)
	} else if !errors.Is(err, NotFound) {
		return err
	}
	if err := s.snapshots.Drop(ctx, c.SnapshotID); err != nil && !errors.Is(err, NotFound) {
		return err
	}
	slices.Sort(hosts)
	var failed error
	for _, h := range slices.Compact(hosts) {
		if h == "" {
			continue
		}
		if err := s.hosts.RemoveSnapshot(ctx, h, c.SnapshotID); err != nil && !errors.Is(err, NotFound) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}
