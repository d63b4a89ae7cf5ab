package meshtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/oklog/ulid/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// CreateSandbox implements SandboxService. Template "none" does not exist, "full" finds no host.
func (m *Mesh) CreateSandbox(ctx context.Context, q *sandboxv1.CreateSandboxRequest) (*sandboxv1.CreateSandboxResponse, error) {
	switch {
	case q.GetVcpus() > 8:
		return nil, apierr.Field("vcpus", fmt.Sprintf("must be 1 to 8, got %d", q.GetVcpus()))
	case q.GetTemplate() == "none":
		return nil, apierr.E(codes.NotFound, "TEMPLATE_NOT_FOUND", `there is no template "none"; stock images are base, tiny`)
	case q.GetTemplate() == "full":
		return nil, apierr.E(codes.ResourceExhausted, apierr.NoCapacity, "no host has room: 512 MiB asked, 0 free")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return &sandboxv1.CreateSandboxResponse{Sandbox: proto.CloneOf(m.add(tenant.From(ctx), q).sb)}, nil
}

// GetSandbox implements SandboxService.
func (m *Mesh) GetSandbox(ctx context.Context, q *sandboxv1.GetSandboxRequest) (*sandboxv1.GetSandboxResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, err := m.find(ctx, q.GetSandboxId())
	if err != nil {
		return nil, err
	}
	return &sandboxv1.GetSandboxResponse{Sandbox: proto.CloneOf(o.sb)}, nil
}

// ListSandboxes implements SandboxService.
func (m *Mesh) ListSandboxes(ctx context.Context, q *sandboxv1.ListSandboxesRequest) (*sandboxv1.ListSandboxesResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	res := &sandboxv1.ListSandboxesResponse{}
	ids := slices.Sorted(maps.Keys(m.sandboxes))
	slices.Reverse(ids)
	for _, id := range ids {
		o := m.sandboxes[id]
		if o.tenant != tenant.From(ctx) || len(q.GetStates()) > 0 && !slices.Contains(q.GetStates(), o.sb.GetState()) {
			continue
		}
		if labelled(o.sb, q) {
			res.Sandboxes = append(res.Sandboxes, proto.CloneOf(o.sb))
		}
	}
	return res, nil
}

func labelled(sb *sandboxv1.Sandbox, q *sandboxv1.ListSandboxesRequest) bool {
	want := maps.Clone(q.GetMetadata())
	for _, l := range q.GetLabel() {
		k, v, _ := strings.Cut(l, "=")
		if want == nil {
			want = map[string]string{}
		}
		want[k] = v
	}
	for k, v := range want {
		if sb.GetMetadata()[k] != v {
			return false
		}
	}
	return true
}

// DeleteSandbox implements SandboxService.
func (m *Mesh) DeleteSandbox(ctx context.Context, q *sandboxv1.DeleteSandboxRequest) (*sandboxv1.DeleteSandboxResponse, error) {
	sb, err := m.change(ctx, q.GetSandboxId(), sandboxv1.State_STATE_STOPPED)
	return &sandboxv1.DeleteSandboxResponse{Sandbox: sb}, err
}

// PauseSandbox implements SandboxService.
func (m *Mesh) PauseSandbox(ctx context.Context, q *sandboxv1.PauseSandboxRequest) (*sandboxv1.PauseSandboxResponse, error) {
	sb, err := m.change(ctx, q.GetSandboxId(), sandboxv1.State_STATE_PAUSED)
	return &sandboxv1.PauseSandboxResponse{Sandbox: sb}, err
}

// ResumeSandbox implements SandboxService.
func (m *Mesh) ResumeSandbox(ctx context.Context, q *sandboxv1.ResumeSandboxRequest) (*sandboxv1.ResumeSandboxResponse, error) {
	sb, err := m.change(ctx, q.GetSandboxId(), sandboxv1.State_STATE_RUNNING)
	return &sandboxv1.ResumeSandboxResponse{Sandbox: sb}, err
}

// PingSandbox implements SandboxService.
func (m *Mesh) PingSandbox(ctx context.Context, q *sandboxv1.PingSandboxRequest) (*sandboxv1.PingSandboxResponse, error) {
	sb, err := m.change(ctx, q.GetSandboxId(), sandboxv1.State_STATE_RUNNING)
	return &sandboxv1.PingSandboxResponse{Sandbox: sb}, err
}

// ForkSandbox implements SandboxService.
func (m *Mesh) ForkSandbox(ctx context.Context, q *sandboxv1.ForkSandboxRequest) (*sandboxv1.ForkSandboxResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, err := m.find(ctx, q.GetSandboxId())
	if err != nil {
		return nil, err
	}
	res := &sandboxv1.ForkSandboxResponse{SourceStoppedUsec: 12345}
	for range max(1, q.GetCount()) {
		copied := m.add(o.tenant, &sandboxv1.CreateSandboxRequest{Template: o.sb.GetTemplate(), Metadata: q.GetMetadata()})
		copied.sb.ParentId = o.sb.GetId()
		res.Sandboxes = append(res.Sandboxes, proto.CloneOf(copied.sb))
	}
	return res, nil
}

// CreateSnapshot implements SandboxService.
func (m *Mesh) CreateSnapshot(ctx context.Context, q *sandboxv1.CreateSnapshotRequest) (*sandboxv1.CreateSnapshotResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, err := m.find(ctx, q.GetSandboxId())
	if err != nil {
		return nil, err
	}
	if m.snapshots[q.GetName()] != nil {
		return nil, apierr.E(codes.AlreadyExists, "NAME_TAKEN", fmt.Sprintf("there is a snapshot %q already", q.GetName()))
	}
	s := &snapshotv1.Snapshot{
		Id: "snap_" + ulid.Make().String(), Name: q.GetName(), Kind: snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE,
		State: snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE, SourceSandboxId: o.sb.GetId(), Vcpus: 1, MemoryMb: 512, DiskMb: 512,
		UniqueBytes: 1 << 20, CreateTime: timestamppb.Now(), Metadata: q.GetMetadata(),
	}
	m.snapshots[s.GetName()] = s
	return &sandboxv1.CreateSnapshotResponse{Snapshot: proto.CloneOf(s)}, nil
}

// GetRestoreReceipt implements SandboxService.
func (m *Mesh) GetRestoreReceipt(ctx context.Context, q *sandboxv1.GetRestoreReceiptRequest) (*sandboxv1.GetRestoreReceiptResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.find(ctx, q.GetSandboxId()); err != nil {
		return nil, err
	}
	return &sandboxv1.GetRestoreReceiptResponse{Receipt: &sandboxv1.RestoreReceipt{
		SandboxId: q.GetSandboxId(), Kind: sandboxv1.StartKind_START_KIND_SPAWN, HostId: "host-a", Vmm: "qemu 7.2.22 tcg", TotalUsec: 200000,
		Phases:      []*sandboxv1.Phase{{Name: "slot", DurationUsec: 50000}, {Name: "load", DurationUsec: 150000}},
		PageSources: []*sandboxv1.PageSource{{Source: "cache", Pages: 100, Bytes: 409600}},
		Attestation: &sandboxv1.Attestation{EntropyReseeded: true, Hostname: "sb-1"},
	}}, nil
}

// WatchSandboxes implements SandboxService. Its resume token is the sandbox's version.
func (m *Mesh) WatchSandboxes(q *sandboxv1.WatchSandboxesRequest, out grpc.ServerStreamingServer[sandboxv1.WatchSandboxesResponse]) error {
	ctx := tenant.Incoming(out.Context(), true)
	seen := map[string]int64{}
	for {
		m.mu.Lock()
		if q.GetSandboxId() != "" {
			if _, err := m.find(ctx, q.GetSandboxId()); err != nil {
				m.mu.Unlock()
				return err
			}
		}
		var list []*sandboxv1.Sandbox
		for id, o := range m.sandboxes {
			if o.tenant == tenant.From(ctx) && (q.GetSandboxId() == "" || q.GetSandboxId() == id) && seen[id] < o.sb.GetVersion() {
				seen[id] = o.sb.GetVersion()
				list = append(list, proto.CloneOf(o.sb))
			}
		}
		changed := m.changed
		m.mu.Unlock()
		for _, sb := range list {
			if err := out.Send(&sandboxv1.WatchSandboxesResponse{Sandbox: sb, ResumeToken: fmt.Sprint(sb.GetVersion())}); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// CreateKey implements KeyService.
func (m *Mesh) CreateKey(ctx context.Context, q *sandboxv1.CreateKeyRequest) (*sandboxv1.CreateKeyResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	scopes := q.GetScopes()
	if len(scopes) == 0 {
		scopes = []string{"read", "write"}
	}
	k := &sandboxv1.Key{Id: "key_" + ulid.Make().String(), Name: q.GetName(), Scopes: scopes, TenantId: tenant.From(ctx), CreateTime: timestamppb.Now()}
	secret := "cvy_" + strings.Repeat("x", 17) + ulid.Make().String()
	m.keys[secret] = k
	return &sandboxv1.CreateKeyResponse{Key: proto.CloneOf(k), Secret: secret}, nil
}

// ListKeys implements KeyService. Its pages have one key, whatever is asked for; a token is the key's place.
func (m *Mesh) ListKeys(ctx context.Context, q *sandboxv1.ListKeysRequest) (*sandboxv1.ListKeysResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var own []*sandboxv1.Key
	for _, secret := range slices.Sorted(maps.Keys(m.keys)) {
		if m.keys[secret].GetTenantId() == tenant.From(ctx) {
			own = append(own, proto.CloneOf(m.keys[secret]))
		}
	}
	at, _ := strconv.Atoi(q.GetPageToken())
	res := &sandboxv1.ListKeysResponse{Keys: own[min(at, len(own)):min(at+1, len(own))]}
	if at+1 < len(own) {
		res.NextPageToken = strconv.Itoa(at + 1)
	}
	return res, nil
}

// RevokeKey implements KeyService.
func (m *Mesh) RevokeKey(ctx context.Context, q *sandboxv1.RevokeKeyRequest) (*sandboxv1.RevokeKeyResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.keys {
		if k.GetId() == q.GetKeyId() && k.GetTenantId() == tenant.From(ctx) {
			k.RevokeTime = timestamppb.Now()
			return &sandboxv1.RevokeKeyResponse{Key: proto.CloneOf(k)}, nil
		}
	}
	return nil, apierr.E(codes.NotFound, "KEY_NOT_FOUND", "there is no key "+q.GetKeyId())
}

// snapshot finds a snapshot by name or id. mu is held.
func (m *Mesh) snapshot(ref string) (*snapshotv1.Snapshot, error) {
	for name, s := range m.snapshots {
		if name == ref || s.GetId() == ref {
			return s, nil
		}
	}
	return nil, apierr.E(codes.NotFound, "SNAPSHOT_NOT_FOUND", fmt.Sprintf("there is no snapshot %q", ref))
}

// GetSnapshot implements SnapshotService.
func (m *Mesh) GetSnapshot(_ context.Context, q *snapshotv1.GetSnapshotRequest) (*snapshotv1.GetSnapshotResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.snapshot(q.GetSnapshotId())
	return &snapshotv1.GetSnapshotResponse{Snapshot: proto.CloneOf(s)}, err
}

// ListSnapshots implements SnapshotService.
func (m *Mesh) ListSnapshots(context.Context, *snapshotv1.ListSnapshotsRequest) (*snapshotv1.ListSnapshotsResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	res := &snapshotv1.ListSnapshotsResponse{}
	for _, name := range slices.Sorted(maps.Keys(m.snapshots)) {
		res.Snapshots = append(res.Snapshots, proto.CloneOf(m.snapshots[name]))
	}
	return res, nil
}

// RenameSnapshot implements SnapshotService.
func (m *Mesh) RenameSnapshot(_ context.Context, q *snapshotv1.RenameSnapshotRequest) (*snapshotv1.RenameSnapshotResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.snapshot(q.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	delete(m.snapshots, s.GetName())
	s.Name = q.GetName()
	m.snapshots[s.GetName()] = s
	return &snapshotv1.RenameSnapshotResponse{Snapshot: proto.CloneOf(s)}, nil
}

// DeleteSnapshot implements SnapshotService.
func (m *Mesh) DeleteSnapshot(_ context.Context, q *snapshotv1.DeleteSnapshotRequest) (*snapshotv1.DeleteSnapshotResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.snapshot(q.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	delete(m.snapshots, s.GetName())
	return &snapshotv1.DeleteSnapshotResponse{Snapshot: s}, nil
}

// ExplainSnapshot implements SnapshotService.
func (m *Mesh) ExplainSnapshot(_ context.Context, q *snapshotv1.ExplainSnapshotRequest) (*snapshotv1.ExplainSnapshotResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.snapshot(q.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &snapshotv1.ExplainSnapshotResponse{
		Snapshot: proto.CloneOf(s), PinnedBy: []string{"sandbox sb_1 reads its memory"},
		Builds: []*snapshotv1.BuildInfo{{Id: "00ff", Kind: "memory", StoredBytes: 4096, NamedBy: []string{s.GetId()}}},
	}, nil
}

// ListHosts implements HostsService.
func (m *Mesh) ListHosts(context.Context, *schedulerv1.ListHostsRequest) (*schedulerv1.ListHostsResponse, error) {
	return &schedulerv1.ListHostsResponse{Hosts: []*schedulerv1.Host{{
		Id: "host-a", Address: m.Hosts[0], State: schedulerv1.HostState_HOST_STATE_READY, Drivers: []string{"qemu"}, HeartbeatTime: timestamppb.Now(),
		Capacity: &schedulerv1.Resources{Vcpus: 8, MemoryMb: 4096, DiskMb: 65536, Slots: 16},
	}}}, nil
}

// ExplainPlacement implements HostsService.
func (m *Mesh) ExplainPlacement(_ context.Context, q *schedulerv1.ExplainPlacementRequest) (*schedulerv1.ExplainPlacementResponse, error) {
	place, asked := q.GetPlace(), ""
	if place.GetSnapshotId() != "" {
		asked = fmt.Sprintf(" %s needs %s, %d vCPUs, %d MiB", place.GetSnapshotId(), place.GetVmm(), place.GetResources().GetVcpus(), place.GetResources().GetMemoryMb())
	}
	return &schedulerv1.ExplainPlacementResponse{
		ChosenHostId: "host-a", Summary: "host-a has the most room." + asked,
		Verdicts: []*schedulerv1.HostVerdict{
			{HostId: "host-a", Fits: true, Score: 0.8, Reasons: []string{"4096 MiB are free"}},
			{HostId: "host-b", Reasons: []string{"it is cordoned"}},
		},
	}, nil
}

// CordonHost implements HostsService.
func (m *Mesh) CordonHost(_ context.Context, q *schedulerv1.CordonHostRequest) (*schedulerv1.CordonHostResponse, error) {
	st := schedulerv1.HostState_HOST_STATE_READY
	if q.GetCordoned() {
		st = schedulerv1.HostState_HOST_STATE_CORDONED
	}
	if q.GetHostId() == "host-lost" {
		st = schedulerv1.HostState_HOST_STATE_LOST
	}
	return &schedulerv1.CordonHostResponse{Host: &schedulerv1.Host{Id: q.GetHostId(), State: st}}, nil
}

var baseline = &schedulerv1.CpuBaseline{Label: "pool=general", Features: []string{"fpu", "sse2"}, Generation: 1}

// GetBaseline implements HostsService.
func (m *Mesh) GetBaseline(context.Context, *schedulerv1.GetBaselineRequest) (*schedulerv1.GetBaselineResponse, error) {
	return &schedulerv1.GetBaselineResponse{
		Baseline: baseline, CommonFeatures: []string{"fpu", "sse2"},
		Hosts: []*schedulerv1.HostFeatures{{HostId: "host-a", BeyondFeatures: []string{"avx2"}, GuestFeatures: []string{"fpu", "sse2"}, Driver: "qemu/tcg"}},
	}, nil
}

// SetBaseline implements HostsService.
func (m *Mesh) SetBaseline(context.Context, *schedulerv1.SetBaselineRequest) (*schedulerv1.SetBaselineResponse, error) {
	return &schedulerv1.SetBaselineResponse{Baseline: baseline}, nil
}

// ClearBaseline implements HostsService.
func (m *Mesh) ClearBaseline(context.Context, *schedulerv1.ClearBaselineRequest) (*schedulerv1.ClearBaselineResponse, error) {
	return &schedulerv1.ClearBaselineResponse{}, nil
}
