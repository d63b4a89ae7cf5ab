package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coveyhq/covey/snapshotsvc/postgres/queries"
	"github.com/coveyhq/covey/snapshotsvc/registry"
)

// Object implements registry.Index.
func (x *Index) Object(ctx context.Context, tenant, key string) (registry.StoredObject, error) {
	row, err := x.q.GetObject(ctx, queries.GetObjectParams{Key: key, TenantID: tenant})
	if errors.Is(err, pgx.ErrNoRows) {
		return registry.StoredObject{}, registry.NoObject(key)
	}
	return decodeObject(row), known(err)
}

// Objects implements registry.Index.
func (x *Index) Objects(ctx context.Context, tenant, id string) ([]registry.StoredObject, error) {
	if _, err := find(ctx, x.q, tenant, id); err != nil {
		return nil, err
	}
	rows, err := x.q.ListObjects(ctx, id)
	objects := make([]registry.StoredObject, len(rows))
	for i, r := range rows {
		objects[i] = decodeObject(r)
	}
	return objects, known(err)
}

func decodeObject(r queries.Object) registry.StoredObject {
	return registry.StoredObject{Object: registry.Object{Key: r.Key, Size: r.SizeBytes, SHA256: r.Sha256}, Path: r.Path, Stored: r.Stored}
}

// SetStored implements registry.Index.
func (x *Index) SetStored(ctx context.Context, path string, stored bool) (bool, error) {
	n, err := x.q.SetStored(ctx, queries.SetStoredParams{Path: path, Stored: stored})
	return n == 1, known(err)
}

// Leases implements registry.Index.
func (x *Index) Leases(ctx context.Context, id string) ([]registry.Lease, error) {
	leases, err := liveLeases(ctx, x.q, id)
	return leases, known(err)
}

func liveLeases(ctx context.Context, q *queries.Queries, id string) ([]registry.Lease, error) {
	rows, err := q.ListLeases(ctx, id)
	leases := make([]registry.Lease, len(rows))
	for i, r := range rows {
		leases[i] = registry.Lease{SnapshotID: r.SnapshotID, Holder: r.Holder}
		if r.Until != nil {
			leases[i].Until = *r.Until
		}
	}
	return leases, err
}

// Acquire implements registry.Index.
func (x *Index) Acquire(ctx context.Context, tenant, id, holder string, ttl time.Duration) error {
	return x.tx(ctx, func(q *queries.Queries) error {
		n, err := q.RenewLease(ctx, queries.RenewLeaseParams{TenantID: tenant, SnapshotID: id, Holder: holder, TtlMs: ttl.Milliseconds()})
		if err != nil || n > 0 {
			return err
		}
		if _, err := q.LockSnapshot(ctx, queries.LockSnapshotParams{ID: id, TenantID: tenant}); err != nil {
			return missing(err, id)
		}
		return q.UpsertLease(ctx, queries.UpsertLeaseParams{SnapshotID: id, Holder: holder, TtlMs: ttl.Milliseconds()})
	})
}

// Release implements registry.Index.
func (x *Index) Release(ctx context.Context, tenant, id, holder string) error {
	return x.tx(ctx, func(q *queries.Queries) error {
		return q.ReleaseLeases(ctx, queries.ReleaseLeasesParams{TenantID: tenant, SnapshotID: id, Holder: holder})
	})
}

// keepTombstones is longer than anyone tries to register a snapshot.
const keepTombstones = 90 * 24 * time.Hour

// Expire implements registry.Index.
func (x *Index) Expire(ctx context.Context) (snapshots int, err error) {
	err = x.tx(ctx, func(q *queries.Queries) error {
		if err := q.DeleteEndedLeases(ctx); err != nil {
			return err
		}
		if err := q.DeleteOldTombstones(ctx, keepTombstones.Milliseconds()); err != nil {
			return err
		}
		n, err := q.DeleteRetired(ctx)
		snapshots = int(n)
		return err
	})
	return snapshots, err
}

// Bury implements registry.Index.
func (x *Index) Bury(ctx context.Context, limit int) (looked, buried int, err error) {
	err = x.tx(ctx, func(q *queries.Queries) error {
		orphans, err := q.ListOrphans(ctx, int32(limit))
		if err != nil || len(orphans) == 0 {
			looked, buried = 0, 0
			return err
		}
		keys := make([]string, len(orphans))
		for i, o := range orphans {
			keys[i] = o.Key
		}
		busy, err := lockAll(ctx, q, keys)
		if err != nil {
			return err
		}
		free, ids := keys[:0], []int64(nil)
		for i, o := range orphans {
			if !busy[o.Key] {
				free, ids = append(free, keys[i]), append(ids, o.ID)
			}
		}
		paths, err := q.DeleteUnnamed(ctx, free)
		if err != nil {
			return err
		}
		if err := q.InsertGarbage(ctx, paths); err != nil {
			return err
		}
		looked, buried = len(ids), len(paths)
		return q.DeleteOrphans(ctx, ids)
	})
	return looked, buried, err
}

// lockAll locks the objects of these keys but those that someone else has locked, which it returns.
func lockAll(ctx context.Context, q *queries.Queries, keys []string) (busy map[string]bool, err error) {
	there, err := q.ListKnown(ctx, keys)
	if err != nil {
		return nil, err
	}
	locked, err := q.LockObjects(ctx, keys)
	if err != nil {
		return nil, err
	}
	busy = make(map[string]bool, len(there))
	for _, k := range there {
		busy[k] = true
	}
	for _, k := range locked {
		delete(busy, k)
	}
	return busy, nil
}

// Garbage implements registry.Index.
func (x *Index) Garbage(ctx context.Context, limit int) ([]string, error) {
	paths, err := x.q.ListGarbage(ctx, int32(limit))
	return paths, known(err)
}

// Postpone implements registry.Index.
func (x *Index) Postpone(ctx context.Context, path string) error {
	return known(x.q.PostponeGarbage(ctx, path))
}

// Discard implements registry.Index.
func (x *Index) Discard(ctx context.Context, path string) error {
	return known(x.q.DiscardPath(ctx, path))
}

// Forget implements registry.Index.
func (x *Index) Forget(ctx context.Context, path string) error {
	return known(x.q.ForgetGarbage(ctx, path))
}

// Unknown implements registry.Index.
func (x *Index) Unknown(ctx context.Context, paths []string) ([]string, error) {
	unknown, err := x.q.ListUnknown(ctx, paths)
	return unknown, known(err)
}
