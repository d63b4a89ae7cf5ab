package machine

import (
	"context"
	"errors"
	"sync"
)

// admitCopies takes room for all copies together and puts them into the table as STARTING, or does nothing.
func (h *Host) admitCopies(source Spec, snapshotID string, ids []string) ([]*Machine, error) {
	spec := source
	spec.Image, spec.SnapshotID, spec.Kind, spec.ColdBoot, spec.Policy = "", snapshotID, ForkCopy, false, MemoryRequired
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range ids {
		if old := h.machines[id]; old != nil {
			return nil, &IllegalError{ID: id, Op: "fork into", State: old.Status().State, Legal: []State{"new"}}
		}
	}
	var all Room
	for range ids {
		all = all.plus(spec.room())
	}
	if err := h.ledger.Take(all); err != nil {
		return nil, err
	}
	copies := make([]*Machine, len(ids))
	for i, id := range ids {
		spec.ID = id
		copies[i] = h.newMachine(spec)
		copies[i].roomTaken = true
		h.machines[id] = copies[i]
	}
	return copies, nil
}

// dismiss takes copies that were never started out of the table.
func (h *Host) dismiss(copies []*Machine) {
	for _, m := range copies {
		h.mu.Lock()
		if h.machines[m.spec.ID] == m {
			delete(h.machines, m.spec.ID)
		}
		h.mu.Unlock()
		m.giveRoom()
	}
}

// startCopies starts admitted copies. The first that fails ends all others.
func (h *Host) startCopies(ctx context.Context, copies []*Machine) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errs := make([]error, len(copies))
	var wg sync.WaitGroup
	for i, m := range copies {
		wg.Go(func() {
			if errs[i] = h.startCopy(ctx, m); errs[i] != nil {
				cancel(errCopyFailed)
			}
		})
	}
	wg.Wait()
	var failed error
	for _, err := range errs {
		if err != nil && !errors.Is(err, errCopyFailed) {
			failed = errors.Join(failed, err)
		}
	}
	if failed == nil && ctx.Err() != nil {
		failed = context.Cause(ctx)
	}
	if failed == nil {
		return nil
	}
	for i, m := range copies {
		wg.Go(func() { errs[i] = m.Destroy(context.WithoutCancel(ctx), "") })
	}
	wg.Wait()
	h.dismiss(copies)
	return errors.Join(append(errs, failed)...)
}

var errCopyFailed = errors.New("another copy of the fork failed")

// startCopy starts one copy and gives it up when ctx ends.
func (h *Host) startCopy(ctx context.Context, m *Machine) error {
	restoreID := newID("rst_")
	h.mu.Lock()
	if h.machines[m.spec.ID] != m {
		h.mu.Unlock()
		return ErrDestroyed
	}
	j, err := h.launchStart(ctx, m, nil, restoreID)
	h.mu.Unlock()
	if err != nil {
		return err
	}
	if _, err = j.wait(ctx); ctx.Err() != nil {
		j.cancel(context.Cause(ctx))
		<-j.done
		return errors.Join(j.err, context.Cause(ctx))
	}
	return err
}
