package registry

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// collectBatch bounds one transaction of the collector, sweepBatch one look into the index.
const (
	collectBatch = 200
	sweepBatch   = 500
)

// Run collects garbage until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	collect, sweep := time.NewTicker(s.conf.Collect), time.NewTicker(s.conf.Sweep)
	defer collect.Stop()
	defer sweep.Stop()
	for {
		if err := s.Collect(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("garbage is not collected; will be tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.garbage:
		case <-collect.C:
		case <-sweep.C:
			if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("the store is not swept; will be tried again", "error", err)
			}
		}
	}
}

func (s *Service) wakeCollector() {
	select {
	case s.garbage <- struct{}{}:
	default:
	}
}

// Collect ends what has to end by now and deletes the bytes of what nothing names any more. It may run in many replicas at once.
func (s *Service) Collect(ctx context.Context) error {
	if n, err := s.index.Expire(ctx); err != nil {
		return err
	} else if n > 0 {
		s.log.InfoContext(ctx, "deleted snapshots whose leases have ended", "snapshots", n)
	}
	for {
		looked, buried, err := s.index.Bury(ctx, collectBatch)
		if err != nil {
			return err
		}
		if buried > 0 {
			s.log.InfoContext(ctx, "forgot objects that nothing names", "objects", buried)
		}
		if looked < collectBatch {
			break
		}
	}
	return s.deleteGarbage(ctx)
}

// maxUndeleted is how many paths may fail to be deleted before a pass ends: one that cannot be must not keep the others, a store that is out of
// reach need not be asked for each.
const maxUndeleted = 20

// deleteGarbage deletes the bytes at all paths that are garbage by now. What fails goes to the end of the line.
func (s *Service) deleteGarbage(ctx context.Context) error {
	var failed []error
	for {
		paths, err := s.index.Garbage(ctx, collectBatch)
		if err != nil {
			return err
		}
		deleted := 0
		for _, p := range paths {
			err := s.deletePath(ctx, p)
			if err == nil {
				deleted++
				continue
			}
			if failed = append(failed, fmt.Errorf("%s: %w", p, err)); len(failed) == maxUndeleted || ctx.Err() != nil {
				return errors.Join(failed...)
			}
			if err := s.index.Postpone(ctx, p); err != nil {
				return err
			}
		}
		if len(paths) < collectBatch || deleted == 0 {
			return errors.Join(failed...)
		}
	}
}

// deletePath deletes bytes first and forgets the path afterwards, so that a crash in between only does it twice.
func (s *Service) deletePath(ctx context.Context, path string) error {
	if err := s.store.Delete(ctx, path); err != nil && !errors.Is(err, ErrAbsent) {
		return unavailable(err)
	}
	return s.index.Forget(ctx, path)
}

// Sweep finds bytes in the store that nothing knows of, which a crash between two steps can leave, and makes them garbage. A path
// has its row before it has bytes, so bytes without a row never belong to anything.
func (s *Service) Sweep(ctx context.Context) error {
	var batch []string
	found := 0
	flush := func() error {
		unknown, err := s.index.Unknown(ctx, batch)
		if err != nil {
			return err
		}
		batch = batch[:0]
		for _, p := range unknown {
			found++
			if err := s.index.Discard(ctx, p); err != nil {
				return err
			}
		}
		return nil
	}
	err := s.store.Walk(ctx, func(path string) error {
		if batch = append(batch, path); len(batch) < sweepBatch {
			return nil
		}
		return flush()
	})
	if err == nil && len(batch) > 0 {
		err = flush()
	}
	if found > 0 {
		s.log.WarnContext(ctx, "found bytes in the store that nothing knows of; they will be deleted", "paths", found)
	}
	if err != nil {
		return err
	}
	return s.Collect(ctx)
}
