package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/coveyhq/covey/snapshotsvc/postgres/queries"
	"github.com/coveyhq/covey/snapshotsvc/registry"
)

// Register implements registry.Index.
func (x *Index) Register(ctx context.Context, r registry.Registration, admit func(registry.Usage) error) (registry.Snapshot, error) {
	manifest, err := json.Marshal(r.Manifest)
	if err != nil {
		return registry.Snapshot{}, err
	}
	metadata, err := json.Marshal(r.Metadata)
	if err != nil {
		return registry.Snapshot{}, err
	}
	if r.Metadata == nil {
		metadata = json.RawMessage("{}")
	}
	id := r.Manifest.SnapshotID
	err = x.tx(ctx, func(q *queries.Queries) error {
		if err := admitID(ctx, q, id); err != nil {
			return err
		}
		if admit != nil {
			if err := q.LockTenant(ctx, r.Tenant); err != nil {
				return err
			}
		}
		n, err := q.InsertSnapshot(ctx, queries.InsertSnapshotParams{
			ID: id, TenantID: r.Tenant, Name: r.Name, Kind: string(r.Kind), ParentID: r.Manifest.ParentID, HostID: r.HostID,
			Metadata: metadata, Manifest: manifest, CreateTime: r.Manifest.CreateTime,
		})
		if err != nil {
			return err
		}
		if n == 0 {
			if err := same(ctx, q, r); err != nil {
				return err
			}
			return q.InsertHost(ctx, queries.InsertHostParams{SnapshotID: id, HostID: r.HostID})
		}
		if err := refer(ctx, q, id, r.Manifest.References()); err != nil {
			return err
		}
		if err := q.InsertHost(ctx, queries.InsertHostParams{SnapshotID: id, HostID: r.HostID}); err != nil {
			return err
		}
		if admit == nil {
			return nil
		}
		u, err := usage(ctx, q, r.Tenant)
		if err != nil {
			return err
		}
		return admit(u)
	})
	if violates(err, "snapshot_name") {
		return registry.Snapshot{}, taken(r.Name)
	}
	if err != nil {
		return registry.Snapshot{}, err
	}
	return x.Find(ctx, r.Tenant, id)
}

// admitID refuses ids that were deleted.
func admitID(ctx context.Context, q *queries.Queries, id string) error {
	if err := q.LockID(ctx, id); err != nil {
		return err
	}
	buried, err := q.IsBuried(ctx, id)
	if err == nil && buried {
		return registry.NoSnapshot(id)
	}
	return err
}

// same tells whether a snapshot that is there is the one being registered.
func same(ctx context.Context, q *queries.Queries, r registry.Registration) error {
	id := r.Manifest.SnapshotID
	row, err := q.GetSnapshot(ctx, id)
	if err != nil {
		return err
	}
	if row.State == string(registry.Deleting) {
		return registry.NoSnapshot(id)
	}
	had, err := decode(row)
	if err != nil {
		return err
	}
	was, err := json.Marshal(had.Manifest)
	if err != nil {
		return err
	}
	is, err := json.Marshal(r.Manifest)
	if err != nil {
		return err
	}
	if row.TenantID != r.Tenant || row.Kind != string(r.Kind) || !bytes.Equal(was, is) {
		return &registry.Error{
			Kind: registry.Exists, Reason: "SNAPSHOT_ID_TAKEN", Message: fmt.Sprintf("there is another snapshot %s already", id),
			Meta: map[string]string{"snapshot_id": id},
		}
	}
	return nil
}

// refer makes or locks the objects, and then refers to them.
func refer(ctx context.Context, q *queries.Queries, id string, refs []registry.Reference) error {
	var objects queries.UpsertObjectsParams
	names := queries.InsertReferencesParams{SnapshotID: id}
	for _, r := range refs {
		objects.Keys = append(objects.Keys, r.Key)
		objects.Paths = append(objects.Paths, r.Key+"@"+rand.Text())
		objects.Sizes = append(objects.Sizes, r.Size)
		objects.Sums = append(objects.Sums, r.SHA256)
		names.Keys = append(names.Keys, r.Key)
		names.Roles = append(names.Roles, string(r.Role))
		names.BuildIds = append(names.BuildIds, r.BuildID)
	}
	rows, err := q.UpsertObjects(ctx, objects)
	if err != nil {
		return err
	}
	is := make(map[string]queries.Object, len(rows))
	for _, o := range rows {
		is[o.Key] = o
	}
	for _, r := range refs {
		if o := is[r.Key]; o.SizeBytes != r.Size || !bytes.Equal(o.Sha256, r.SHA256) {
			return &registry.Error{
				Kind: registry.Exists, Reason: "OBJECT_DIFFERS",
				Message: fmt.Sprintf("object %s is known with %d bytes and SHA-256 %x, got %d and %x", r.Key, o.SizeBytes, o.Sha256, r.Size, r.SHA256),
				Meta:    map[string]string{"key": r.Key},
			}
		}
	}
	return q.InsertReferences(ctx, names)
}

func taken(name string) error {
	return &registry.Error{
		Kind: registry.Exists, Reason: "NAME_TAKEN", Message: fmt.Sprintf("there is a template named %q already; rename or delete it, or choose another name", name),
		Meta: map[string]string{"name": name},
	}
}

// Find implements registry.Index.
func (x *Index) Find(ctx context.Context, tenant, ref string) (registry.Snapshot, error) {
	row, err := find(ctx, x.q, tenant, ref)
	if err != nil {
		return registry.Snapshot{}, err
	}
	return x.one(ctx, row)
}

func find(ctx context.Context, q *queries.Queries, tenant, ref string) (row queries.Snapshot, err error) {
	if registry.IsID(ref) {
		row, err = q.FindSnapshot(ctx, queries.FindSnapshotParams{ID: ref, TenantID: tenant})
	} else {
		row, err = q.FindSnapshotByName(ctx, queries.FindSnapshotByNameParams{TenantID: tenant, Name: ref})
	}
	return row, missing(err, ref)
}

// missing is known for a query of one snapshot.
func missing(err error, ref string) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return registry.NoSnapshot(ref)
	}
	return known(err)
}

// one decodes a row and adds what its builds take.
func (x *Index) one(ctx context.Context, row queries.Snapshot) (registry.Snapshot, error) {
	all, err := x.all(ctx, []queries.Snapshot{row})
	if err != nil {
		return registry.Snapshot{}, err
	}
	return all[0], nil
}

func (x *Index) all(ctx context.Context, rows []queries.Snapshot) ([]registry.Snapshot, error) {
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	sums, err := x.q.BuildBytes(ctx, ids)
	if err != nil {
		return nil, known(err)
	}
	of := make(map[string]queries.BuildBytesRow, len(sums))
	for _, b := range sums {
		of[b.SnapshotID] = b
	}
	all := make([]registry.Snapshot, len(rows))
	for i, r := range rows {
		if all[i], err = decode(r); err != nil {
			return nil, err
		}
		all[i].UniqueBytes, all[i].SharedBytes = of[r.ID].UniqueBytes, of[r.ID].SharedBytes
	}
	return all, nil
}

func decode(r queries.Snapshot) (registry.Snapshot, error) {
	s := registry.Snapshot{
		ID: r.ID, Tenant: r.TenantID, Name: r.Name, Kind: registry.SnapshotKind(r.Kind), State: registry.State(r.State), HostID: r.HostID,
	}
	if err := json.Unmarshal(r.Manifest, &s.Manifest); err != nil {
		return s, fmt.Errorf("snapshot %s: column manifest: %w", r.ID, err)
	}
	if err := json.Unmarshal(r.Metadata, &s.Metadata); err != nil {
		return s, fmt.Errorf("snapshot %s: column metadata: %w", r.ID, err)
	}
	return s, nil
}

// List implements registry.Index.
func (x *Index) List(ctx context.Context, tenant string, kind registry.SnapshotKind, from registry.Page, limit int) ([]registry.Snapshot, error) {
	p := queries.ListSnapshotsParams{TenantID: tenant, Kind: string(kind), BeforeID: from.BeforeID, RowLimit: int32(limit)}
	if from.BeforeID != "" {
		p.BeforeTime = &from.BeforeTime
	}
	rows, err := x.q.ListSnapshots(ctx, p)
	if err != nil {
		return nil, known(err)
	}
	return x.all(ctx, rows)
}

// Rename implements registry.Index.
func (x *Index) Rename(ctx context.Context, tenant, ref, name string) (registry.Snapshot, error) {
	row, err := find(ctx, x.q, tenant, ref)
	if err != nil {
		return registry.Snapshot{}, err
	}
	row, err = x.q.RenameSnapshot(ctx, queries.RenameSnapshotParams{ID: row.ID, TenantID: tenant, Name: name})
	if violates(err, "snapshot_name") {
		return registry.Snapshot{}, taken(name)
	}
	if err != nil {
		return registry.Snapshot{}, missing(err, ref)
	}
	return x.one(ctx, row)
}

// Delete implements registry.Index.
func (x *Index) Delete(ctx context.Context, tenant, ref string, may func(registry.Snapshot, []registry.Lease) error) (registry.Snapshot, error) {
	found, err := x.Find(ctx, tenant, ref)
	if err != nil {
		return found, err
	}
	err = x.tx(ctx, func(q *queries.Queries) error {
		// A registration that is tried again at the same time sees the tombstone, and does not put the row back.
		if err := q.LockID(ctx, found.ID); err != nil {
			return err
		}
		// A lease is taken under the same lock, so that none comes between looking and deleting.
		row, err := q.LockSnapshot(ctx, queries.LockSnapshotParams{ID: found.ID, TenantID: tenant})
		if err != nil {
			return missing(err, ref)
		}
		leases, err := liveLeases(ctx, q, row.ID)
		if err != nil {
			return err
		}
		if err := may(found, leases); err != nil {
			return err
		}
		return remove(ctx, q, row.ID, len(leases) > 0)
	})
	found.State = registry.Deleting
	return found, err
}

// remove deletes a snapshot, or retires it where it has leases, for good.
func remove(ctx context.Context, q *queries.Queries, id string, leased bool) error {
	if err := q.InsertTombstone(ctx, id); err != nil {
		return err
	}
	if leased {
		return q.RetireSnapshot(ctx, id)
	}
	return q.DeleteSnapshot(ctx, id)
}

// Drop implements registry.Index.
func (x *Index) Drop(ctx context.Context, tenant, id string) error {
	return x.tx(ctx, func(q *queries.Queries) error {
		if err := q.LockID(ctx, id); err != nil {
			return err
		}
		_, err := q.LockSnapshot(ctx, queries.LockSnapshotParams{ID: id, TenantID: tenant})
		if errors.Is(err, pgx.ErrNoRows) {
			if _, err := q.GetSnapshot(ctx, id); !errors.Is(err, pgx.ErrNoRows) {
				return err // Another tenant's, or retired.
			}
			return q.InsertTombstone(ctx, id)
		}
		if err != nil {
			return err
		}
		leases, err := liveLeases(ctx, q, id)
		if err != nil {
			return err
		}
		return remove(ctx, q, id, len(leases) > 0)
	})
}

// MakeDurable implements registry.Index.
func (x *Index) MakeDurable(ctx context.Context, tenant, id string) (s registry.Snapshot, lacking []string, err error) {
	var row queries.Snapshot
	err = x.tx(ctx, func(q *queries.Queries) (err error) {
		lacking = nil
		if row, err = q.LockSnapshot(ctx, queries.LockSnapshotParams{ID: id, TenantID: tenant}); err != nil {
			return missing(err, id)
		}
		objects, err := q.ListMissing(ctx, id)
		if err != nil {
			return err
		}
		for _, o := range objects {
			if !o.Stored {
				lacking = append(lacking, o.Key)
			}
		}
		if len(lacking) > 0 {
			return nil
		}
		row, err = q.SetDurable(ctx, id)
		return err
	})
	if err != nil || len(lacking) > 0 {
		return s, lacking, err
	}
	s, err = x.one(ctx, row)
	return s, nil, err
}

// Builds implements registry.Index.
func (x *Index) Builds(ctx context.Context, tenant, id string, limit int) ([]registry.BuildUse, error) {
	rows, err := x.q.ListBuilds(ctx, queries.ListBuildsParams{TenantID: tenant, SnapshotID: id, Most: int32(limit)})
	builds := make([]registry.BuildUse, len(rows))
	for i, r := range rows {
		builds[i] = registry.BuildUse{ID: r.BuildID, Kind: r.Role, Stored: r.SizeBytes, NamedBy: r.NamedBy}
	}
	return builds, known(err)
}

// Lineage implements registry.Index.
func (x *Index) Lineage(ctx context.Context, tenant, id string) ([]string, error) {
	ids, err := x.q.ListLineage(ctx, queries.ListLineageParams{ID: id, TenantID: tenant})
	return ids, known(err)
}

// Usage implements registry.Index.
func (x *Index) Usage(ctx context.Context, tenant string) (registry.Usage, error) {
	u, err := usage(ctx, x.q, tenant)
	return u, known(err)
}

func usage(ctx context.Context, q *queries.Queries, tenant string) (registry.Usage, error) {
	u, err := q.TenantUsage(ctx, tenant)
	return registry.Usage{Snapshots: int(u.Snapshots), Bytes: u.Bytes, Templates: u.Templates}, err
}

// Hosts implements registry.Index.
func (x *Index) Hosts(ctx context.Context, id string) ([]string, error) {
	hosts, err := x.q.ListHosts(ctx, id)
	return hosts, known(err)
}

// Readers implements registry.Index.
func (x *Index) Readers(ctx context.Context, id string) ([]string, error) {
	hosts, err := x.q.ListReaders(ctx, id)
	return hosts, known(err)
}

// SetHostSnapshots implements registry.Index.
func (x *Index) SetHostSnapshots(ctx context.Context, hostID string, ids []string) (existing []string, err error) {
	if ids == nil {
		ids = []string{}
	}
	err = x.tx(ctx, func(q *queries.Queries) error {
		if existing, err = q.ListExisting(ctx, ids); err != nil {
			return err
		}
		if err := q.DeleteOtherHostSnapshots(ctx, queries.DeleteOtherHostSnapshotsParams{HostID: hostID, Ids: ids}); err != nil {
			return err
		}
		return q.InsertHostSnapshots(ctx, queries.InsertHostSnapshotsParams{HostID: hostID, Ids: existing})
	})
	return existing, err
}
