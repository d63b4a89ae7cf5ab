package sandbox

import (
	"context"
	"errors"
	"time"
)

// durableBatch is how many paused sandboxes are looked at in one pass.
const durableBatch = 50

// noteDurables looks whether the snapshots of paused sandboxes have reached the registry. It does so more often than hosts are
// compared: people wait for it.
func (s *Service) noteDurables(ctx context.Context) {
	tick := time.NewTicker(s.timing.Reconcile / 5)
	defer tick.Stop()
	for {
		if err := s.noteDurable(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("durable snapshots could not be noted", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Service) noteDurable(ctx context.Context) error {
	rows, err := s.store.Undurable(ctx, durableBatch)
	if err != nil {
		return err
	}
	for _, sb := range rows {
		m, err := s.snapshots.Manifest(ctx, sb.Tenant, sb.SnapshotID)
		if errors.Is(err, NotFound) || err == nil && !m.Durable {
			continue
		}
		if err != nil {
			return err
		}
		sb.Durable = true
		if _, err := s.apply(ctx, Change{Update: []Sandbox{sb}}); err != nil && !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return nil
}
