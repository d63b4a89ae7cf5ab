package peers

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/sandbox"
)

// Snapshots implements sandbox.Snapshots.
type Snapshots struct {
	registry snapshotv1.RegistryServiceClient
	tenant   func(ctx context.Context, tenant string) context.Context
}

var _ sandbox.Snapshots = (*Snapshots)(nil)

// NewSnapshots speaks to the registry over a connection. Tenant makes a context in which a call is a tenant's.
func NewSnapshots(c grpc.ClientConnInterface, tenant func(ctx context.Context, tenant string) context.Context) *Snapshots {
	return &Snapshots{registry: snapshotv1.NewRegistryServiceClient(c), tenant: tenant}
}

// Stored implements sandbox.Snapshots.
func (s *Snapshots) Stored(ctx context.Context, tenant string) (sandbox.Stored, error) {
	r, err := s.registry.GetUsage(s.tenant(ctx, tenant), &snapshotv1.GetUsageRequest{TenantId: tenant})
	if err != nil {
		return sandbox.Stored{}, translate(ctx, theRegistry, err)
	}
	return sandbox.Stored{Templates: r.GetTemplateIds(), Bytes: int64(r.GetStoredBytes())}, nil
}

// Manifest implements sandbox.Snapshots.
func (s *Snapshots) Manifest(ctx context.Context, tenant, snapshot string) (sandbox.Manifest, error) {
	r, err := s.registry.GetManifest(ctx, &snapshotv1.GetManifestRequest{Snapshot: snapshot, TenantId: tenant})
	if err != nil {
		return sandbox.Manifest{}, translate(ctx, theRegistry, err)
	}
	m, snap := r.GetManifest(), r.GetSnapshot()
	return sandbox.Manifest{
		ID: m.GetSnapshotId(), Name: snap.GetName(), VCPUs: m.GetVcpus(), MemoryMB: uint32(m.GetMemoryBytes() >> 20),
		DiskMB: uint32(m.GetDiskBytes() >> 20), Image: m.GetImage(),
		Needs:   sandbox.Needs{VMM: driver(m), Machine: m.GetMachine(), CPUFeatures: m.GetCpuFeatures(), KernelID: m.GetKernelId()},
		Durable: snap.GetState() == snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE, HostIDs: r.GetHostIds(),
	}, nil
}

// CopyAs implements sandbox.Snapshots: a second manifest that names the same objects, which the registry counts references to.
func (s *Snapshots) CopyAs(ctx context.Context, tenant, from, id, name string, metadata map[string]string) (sandbox.Snapshot, error) {
	r, err := s.registry.GetManifest(ctx, &snapshotv1.GetManifestRequest{Snapshot: from, TenantId: tenant})
	if err != nil {
		return sandbox.Snapshot{}, translate(ctx, theRegistry, err)
	}
	m := proto.CloneOf(r.GetManifest())
	m.SnapshotId = id
	_, err = s.registry.RegisterSnapshot(ctx, &snapshotv1.RegisterSnapshotRequest{
		TenantId: tenant, Kind: snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE, Name: name, Manifest: m,
		HostId: r.GetSnapshot().GetHostId(), Metadata: metadata,
	})
	if err != nil {
		return sandbox.Snapshot{}, translate(ctx, theRegistry, err)
	}
	done, err := s.registry.CommitSnapshot(ctx, &snapshotv1.CommitSnapshotRequest{SnapshotId: id})
	return decodeSnapshot(done.GetSnapshot()), translate(ctx, theRegistry, err)
}

// Drop implements sandbox.Snapshots.
func (s *Snapshots) Drop(ctx context.Context, snapshot string) error {
	_, err := s.registry.DropSnapshot(ctx, &snapshotv1.DropSnapshotRequest{SnapshotId: snapshot})
	return translate(ctx, theRegistry, err)
}

// Lease implements sandbox.Snapshots.
func (s *Snapshots) Lease(ctx context.Context, snapshot, holder string) error {
	_, err := s.registry.AcquireLease(ctx, &snapshotv1.AcquireLeaseRequest{SnapshotId: snapshot, Holder: holder})
	return translate(ctx, theRegistry, err)
}

// Release implements sandbox.Snapshots.
func (s *Snapshots) Release(ctx context.Context, snapshot, holder string) error {
	_, err := s.registry.ReleaseLease(ctx, &snapshotv1.ReleaseLeaseRequest{SnapshotId: snapshot, Holder: holder})
	return translate(ctx, theRegistry, err)
}

func decodeSnapshot(p *snapshotv1.Snapshot) sandbox.Snapshot {
	return sandbox.Snapshot{
		ID: p.GetId(), Name: p.GetName(), Kind: int32(p.GetKind()), State: int32(p.GetState()), SourceSandboxID: p.GetSourceSandboxId(),
		ParentID: p.GetParentId(), VCPUs: p.GetVcpus(), MemoryMB: p.GetMemoryMb(), DiskMB: p.GetDiskMb(),
		UniqueBytes: p.GetUniqueBytes(), SharedBytes: p.GetSharedBytes(), Generation: p.GetGeneration(),
		CreateTime: stamp(p.GetCreateTime()), Metadata: p.GetMetadata(), HostID: p.GetHostId(), VMM: p.GetVmm(),
	}
}

// driver is what a host must have to restore a snapshot: the VMM with its accelerator, as hosts name them.
func driver(m *snapshotv1.Manifest) string {
	if m.GetVmm() == "" || m.GetAccel() == "" {
		return m.GetVmm()
	}
	return m.GetVmm() + "/" + m.GetAccel()
}
