package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// statParallel bounds how many objects of one commit are looked at together.
const statParallel = 8

// Register records a snapshot that is safe on a host's disk. Registering it again is no error.
//
// Quotas bind templates alone: a pause is not refused, because the sandbox's state is safe nowhere else.
func (s *Service) Register(ctx context.Context, tenant string, r Registration) (Snapshot, error) {
	if err := r.check(); err != nil {
		return Snapshot{}, err
	}
	if tenant != "" && tenant != r.Tenant {
		return Snapshot{}, Field("tenant_id", "must be the caller's tenant")
	}
	// What the database keeps of a time.
	r.Manifest.CreateTime = r.Manifest.CreateTime.UTC().Truncate(time.Microsecond)
	var admit func(Usage) error
	if q := s.quota(r.Tenant); r.Kind == Template && q != (Quota{}) {
		admit = q.admit
	}
	snap, err := s.index.Register(ctx, r, admit)
	if err == nil {
		s.log.InfoContext(ctx, "snapshot registered", "snapshot_id", snap.ID, "tenant_id", snap.Tenant, "kind", snap.Kind, "host_id", r.HostID)
	}
	return snap, err
}

func (s *Service) quota(tenant string) Quota {
	if q, ok := s.conf.Quotas[tenant]; ok {
		return q
	}
	return s.conf.Quota
}

func (q Quota) admit(u Usage) error {
	var over string
	switch {
	case q.Snapshots > 0 && u.Snapshots > q.Snapshots:
		over = fmt.Sprintf("%d snapshots of at most %d", u.Snapshots, q.Snapshots)
	case q.Bytes > 0 && u.Bytes > q.Bytes:
		over = fmt.Sprintf("%d bytes of at most %d", u.Bytes, q.Bytes)
	default:
		return nil
	}
	return &Error{Kind: Exhausted, Reason: "QUOTA_EXCEEDED", Message: "with this snapshot the tenant would have " + over + "; delete snapshots first"}
}

// Commit makes a snapshot durable, after it has looked that everything it names is in the store.
func (s *Service) Commit(ctx context.Context, tenant, id string) (Snapshot, error) {
	if err := checkID("snapshot_id", id); err != nil {
		return Snapshot{}, err
	}
	objects, err := s.index.Objects(ctx, tenant, id)
	if err != nil {
		return Snapshot{}, err
	}
	if err := s.checkStored(ctx, objects); err != nil {
		return Snapshot{}, err
	}
	snap, missing, err := s.index.MakeDurable(ctx, tenant, id)
	if err != nil {
		return Snapshot{}, err
	}
	if len(missing) > 0 {
		return Snapshot{}, &Error{
			Kind: Precondition, Reason: "OBJECTS_MISSING", Message: fmt.Sprintf("snapshot %s is not whole: %d of its objects are not stored: %s", id, len(missing), clipList(missing)),
			Meta: map[string]string{"snapshot_id": id},
		}
	}
	s.log.InfoContext(ctx, "snapshot is durable", "snapshot_id", id, "tenant_id", snap.Tenant)
	return snap, nil
}

// checkStored notes objects as missing whose bytes are not where they should be.
func (s *Service) checkStored(ctx context.Context, objects []StoredObject) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(statParallel)
	for _, o := range objects {
		if !o.Stored {
			continue
		}
		g.Go(func() error {
			size, err := s.store.Stat(ctx, o.Path)
			switch {
			case err == nil && size == o.Size:
				return nil
			case err != nil && !errors.Is(err, ErrAbsent):
				return unavailable(err)
			}
			s.log.ErrorContext(ctx, "a stored object is not there any more", "key", o.Key, "path", o.Path, "size_bytes", o.Size, "found_bytes", size)
			_, err = s.index.SetStored(ctx, o.Path, false)
			return err
		})
	}
	return g.Wait()
}

// Manifest reads a snapshot with the hosts that have it.
func (s *Service) Manifest(ctx context.Context, tenant, ref string) (Snapshot, []string, error) {
	if err := checkRef("snapshot", ref); err != nil {
		return Snapshot{}, nil, err
	}
	if tenant == "" && !IsID(ref) {
		return Snapshot{}, nil, Field("tenant_id", "must be set to find a template by its name")
	}
	snap, err := s.index.Find(ctx, tenant, ref)
	if err != nil {
		return Snapshot{}, nil, err
	}
	hosts, err := s.index.Hosts(ctx, snap.ID)
	return snap, hosts, err
}

// Readers tells which hosts have some of a snapshot or are fetching it. The empty id has none, and where it cannot be told there are none
// either: who reads a range gets it without.
func (s *Service) Readers(ctx context.Context, id string) []string {
	if id == "" || checkID("snapshot_id", id) != nil {
		return nil
	}
	hosts, err := s.index.Readers(ctx, id)
	if err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "who reads a snapshot cannot be told", "snapshot_id", id, "error", err)
	}
	return hosts
}

// Drop deletes a snapshot whatever its kind. It stays, found by nobody, until its leases have ended. One that is not
// there is no error, and will not be registered any more.
func (s *Service) Drop(ctx context.Context, tenant, id string) error {
	if err := checkID("snapshot_id", id); err != nil {
		return err
	}
	if err := s.index.Drop(ctx, tenant, id); err != nil {
		return err
	}
	s.wakeCollector()
	s.log.InfoContext(ctx, "snapshot dropped", "snapshot_id", id)
	return nil
}

// Acquire pins a snapshot until the lease ends or is released; ttl 0 means for ever.
func (s *Service) Acquire(ctx context.Context, tenant, id, holder string, ttl time.Duration) error {
	if err := checkID("snapshot_id", id); err != nil {
		return err
	}
	if err := checkHolder(holder); err != nil {
		return err
	}
	return s.index.Acquire(ctx, tenant, id, holder, ttl)
}

// Release ends a lease, or all of the holder's where id is empty. One that is not there is no error.
func (s *Service) Release(ctx context.Context, tenant, id, holder string) error {
	if id != "" {
		if err := checkID("snapshot_id", id); err != nil {
			return err
		}
	}
	if err := checkHolder(holder); err != nil {
		return err
	}
	if err := s.index.Release(ctx, tenant, id, holder); err != nil {
		return err
	}
	s.wakeCollector()
	return nil
}

func checkHolder(holder string) error {
	if !holderName.MatchString(holder) {
		return Field("holder", "must be like \"sandbox/sb_...\", at most 200 characters, got %q", clip(holder))
	}
	return nil
}

// HostSnapshots notes what a host has, so that others can read from it, and tells which of it still exist.
func (s *Service) HostSnapshots(ctx context.Context, hostID string, ids []string) ([]string, error) {
	if !hostName.MatchString(hostID) {
		return nil, Field("host_id", "must be 1 to 63 characters of [A-Za-z0-9._-], got %q", clip(hostID))
	}
	ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !IsID(id) })
	slices.SortFunc(ids, strings.Compare)
	return s.index.SetHostSnapshots(ctx, hostID, slices.Compact(ids))
}
