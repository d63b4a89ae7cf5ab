package transfer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// Times of leases on what was fetched.
const (
	leaseTime  = 24 * time.Hour
	leaseRenew = time.Hour
	// reportPause is the least between two reports that something asked for.
	reportPause = time.Second
)

// wantReport asks for a report soon.
func (t *Transfer) wantReport() {
	select {
	case t.report <- struct{}{}:
	default:
	}
}

// Removed is to be called when a snapshot is not on this host any more. It may come late: what has been fetched again meanwhile, or is just
// being fetched, keeps its lease.
func (t *Transfer) Removed(id string) {
	t.mu.Lock()
	t.left[id] = true
	t.mu.Unlock()
	t.wantReport()
}

// Healed counts something damaged on this host that was replaced by what is elsewhere, or could not be.
func (t *Transfer) Healed(ok bool) {
	result := "refused"
	if ok {
		result = "ok"
	}
	t.metrics.heals.Add(context.Background(), 1, metric.WithAttributes(attribute.String("result", result)))
}

// reports tells the registry what this host has, once in a while and when asked, until ctx ends.
func (t *Transfer) reports(ctx context.Context) {
	tick := time.NewTicker(t.conf.Report)
	defer tick.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	t.leftBefore()
	k := keeper{Transfer: t, renewed: map[string]time.Time{}}
	for {
		// Reports that are asked for in quick succession become one.
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		if err := t.reportOnce(ctx); err != nil && ctx.Err() == nil {
			t.log.Info("the registry does not know what this host has; will be told again", "error", err)
		}
		k.keep(ctx)
		pause.Reset(min(reportPause, t.conf.Report))
		select {
		case <-t.report:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// reportOnce tells what this host has, and follows what the registry says of it.
func (t *Transfer) reportOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	local := t.store.Local()
	r, err := t.registry.ListHostSnapshots(ctx, &snapshotv1.ListHostSnapshotsRequest{HostId: t.conf.HostID, SnapshotIds: local})
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range local {
		if slices.Contains(r.GetExistingIds(), id) {
			continue
		}
		switch t.marks.get(id) {
		case fetched:
			t.log.Info("a snapshot of elsewhere was deleted and is removed from this host", "snapshot_id", id)
			errs = append(errs, t.store.Remove(ctx, id))
		case durable:
			// Deleted, or the registry has forgotten it: registering it again tells which.
			errs = append(errs, t.marks.clear(id))
			t.queue.add(id, false)
		}
	}
	return errors.Join(errs...)
}

// keeper keeps what was fetched from being deleted, as long as it is here or something made here is not registered yet.
type keeper struct {
	*Transfer
	// renewed is when leases were last renewed.
	renewed map[string]time.Time
}

// leftBefore finds the marks of snapshots that a former agent saw go, or never saw come.
func (t *Transfer) leftBefore() {
	local := t.store.Local()
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.marks.list() {
		if !slices.Contains(local, id) {
			t.left[id] = true
		}
	}
}

func (k *keeper) keep(ctx context.Context) {
	for _, id := range k.store.Local() {
		if _, known := k.renewed[id]; !known && k.marks.get(id) == fetched {
			k.renewed[id] = time.Time{}
		}
	}
	for _, id := range k.leaving() {
		if k.letGo(ctx, id) {
			delete(k.renewed, id)
		}
	}
	// What is deleted but in use is not listed any more and needs its lease still.
	for id, at := range k.renewed {
		if time.Since(at) > leaseRenew && k.fetcher.lease(ctx, id) == nil {
			k.renewed[id] = time.Now()
		}
	}
}

func (t *Transfer) leaving() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.left))
}

// letGo releases the lease of what is not here any more, when the registry keeps all that was made of it. Nobody can begin to fetch it
// meanwhile.
func (t *Transfer) letGo(ctx context.Context, id string) bool {
	t.leasing.Lock()
	defer t.leasing.Unlock()
	t.mu.Lock()
	still, coming := t.left[id], t.coming[id] > 0
	here := !coming && t.store.Has(id)
	if here {
		delete(t.left, id)
	}
	t.mu.Unlock()
	if !still || coming || here {
		return false
	}
	if t.marks.get(id) == fetched && (!t.queue.allRegistered() || !t.release(ctx, id)) {
		return false
	}
	if err := t.marks.clear(id); err != nil {
		t.log.Warn("a mark cannot be removed", "snapshot_id", id, "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.left, id)
	return true
}

func (t *Transfer) release(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := t.registry.ReleaseLease(ctx, &snapshotv1.ReleaseLeaseRequest{SnapshotId: id, Holder: t.fetcher.holder()})
	if err != nil && !gone(err) {
		t.log.Info("a lease is not released; will be tried again", "snapshot_id", id, "error", err)
		return false
	}
	return true
}
