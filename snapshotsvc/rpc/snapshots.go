package rpc

import (
	"context"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/snapshotsvc/registry"
)

// Config is what the services need.
type Config struct {
	Registry *registry.Service
	Log      *slog.Logger
	// Tenant is whose request it is; false where the call brought none.
	Tenant func(context.Context) (string, bool)
	// DefaultTenant is that of users' calls that bring none.
	DefaultTenant string
}

// Register adds the services to a server.
func Register(r grpc.ServiceRegistrar, c Config) {
	snapshotv1.RegisterSnapshotServiceServer(r, &snapshots{Config: c})
	snapshotv1.RegisterRegistryServiceServer(r, &hosts{Config: c})
}

// fail is an answer's error. A caller who has gone is told of that alone.
func (c *Config) fail(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return apierr.From(ctx, c.Log, "snapshotd", err)
}

// user is the tenant of a user's call.
func (c *Config) user(ctx context.Context) string {
	if t, ok := c.Tenant(ctx); ok && t != "" {
		return t
	}
	return c.DefaultTenant
}

// caller is the tenant that a registry call is held to; empty means any.
func (c *Config) caller(ctx context.Context) string {
	t, _ := c.Tenant(ctx)
	return t
}

type snapshots struct {
	snapshotv1.UnimplementedSnapshotServiceServer
	Config
}

func (s *snapshots) GetSnapshot(ctx context.Context, r *snapshotv1.GetSnapshotRequest) (*snapshotv1.GetSnapshotResponse, error) {
	snap, err := s.Registry.Get(ctx, s.user(ctx), r.GetSnapshotId())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.GetSnapshotResponse{Snapshot: toSnapshot(snap)}, nil
}

func (s *snapshots) ListSnapshots(ctx context.Context, r *snapshotv1.ListSnapshotsRequest) (*snapshotv1.ListSnapshotsResponse, error) {
	q := registry.ListRequest{Kind: registry.Template, PageSize: r.GetPageSize(), PageToken: r.GetPageToken()}
	switch {
	case r.GetAllKinds():
		q.Kind = ""
	case r.GetKind() != snapshotv1.SnapshotKind_SNAPSHOT_KIND_UNSPECIFIED:
		q.Kind = fromKind(r.GetKind())
	}
	list, next, err := s.Registry.List(ctx, s.user(ctx), q)
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	resp := &snapshotv1.ListSnapshotsResponse{NextPageToken: next}
	for _, snap := range list {
		resp.Snapshots = append(resp.Snapshots, toSnapshot(snap))
	}
	return resp, nil
}

func (s *snapshots) RenameSnapshot(ctx context.Context, r *snapshotv1.RenameSnapshotRequest) (*snapshotv1.RenameSnapshotResponse, error) {
	snap, err := s.Registry.Rename(ctx, s.user(ctx), r.GetSnapshotId(), r.GetName())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.RenameSnapshotResponse{Snapshot: toSnapshot(snap)}, nil
}

func (s *snapshots) DeleteSnapshot(ctx context.Context, r *snapshotv1.DeleteSnapshotRequest) (*snapshotv1.DeleteSnapshotResponse, error) {
	snap, err := s.Registry.Delete(ctx, s.user(ctx), r.GetSnapshotId())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.DeleteSnapshotResponse{Snapshot: toSnapshot(snap)}, nil
}

func (s *snapshots) ExplainSnapshot(ctx context.Context, r *snapshotv1.ExplainSnapshotRequest) (*snapshotv1.ExplainSnapshotResponse, error) {
	e, err := s.Registry.Explain(ctx, s.user(ctx), r.GetSnapshotId())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	resp := &snapshotv1.ExplainSnapshotResponse{Snapshot: toSnapshot(e.Snapshot), PinnedBy: e.PinnedBy, Lineage: e.Lineage}
	for _, b := range e.Builds {
		resp.Builds = append(resp.Builds, &snapshotv1.BuildInfo{Id: b.ID, Kind: b.Kind, StoredBytes: b.Stored, NamedBy: b.NamedBy})
	}
	return resp, nil
}
