package meshtest

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// DrainHost implements OperationsService: one sandbox moves from host-a to host-b, and from host-full to nowhere.
func (m *Mesh) DrainHost(q *sandboxv1.DrainHostRequest, out grpc.ServerStreamingServer[sandboxv1.DrainHostResponse]) error {
	moved := &sandboxv1.DrainHostResponse{Step: sandboxv1.DrainStep_DRAIN_STEP_RESUMED, SandboxId: "sb_1", HostId: "host-b", Total: 1}
	switch q.GetHostId() {
	case "host-a":
	case "host-full":
		moved.Step, moved.HostId, moved.Reason = sandboxv1.DrainStep_DRAIN_STEP_LEFT_PAUSED, "", "no host fits"
	default:
		return apierr.E(codes.NotFound, "HOST_NOT_FOUND", "there is no host "+q.GetHostId())
	}
	for _, s := range []*sandboxv1.DrainHostResponse{
		{Step: sandboxv1.DrainStep_DRAIN_STEP_CORDONED, Remaining: 1, Total: 1},
		moved,
		{Step: sandboxv1.DrainStep_DRAIN_STEP_DONE, Total: 1},
	} {
		if err := out.Send(s); err != nil {
			return err
		}
	}
	return nil
}

// CanRestoreSnapshot implements OperationsService.
func (m *Mesh) CanRestoreSnapshot(_ context.Context, q *sandboxv1.CanRestoreSnapshotRequest) (*sandboxv1.CanRestoreSnapshotResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.snapshot(q.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &sandboxv1.CanRestoreSnapshotResponse{
		SnapshotId: s.GetId(), Driver: "qemu/tcg", Verdicts: []*sandboxv1.RestoreVerdict{
			{HostId: "host-a", Can: true, Reasons: []string{"has the snapshot"}}, {HostId: "host-b", Reasons: []string{"has no driver qemu/tcg"}},
		},
	}, nil
}

// GetUsage implements TenantService.
func (m *Mesh) GetUsage(ctx context.Context, _ *sandboxv1.GetUsageRequest) (*sandboxv1.GetUsageResponse, error) {
	return &sandboxv1.GetUsageResponse{TenantId: tenant.From(ctx), StartTime: timestamppb.Now(), EndTime: timestamppb.Now(), VcpuSeconds: 7.5, SandboxCount: 1}, nil
}

// GetQuota implements TenantService.
func (m *Mesh) GetQuota(ctx context.Context, _ *sandboxv1.GetQuotaRequest) (*sandboxv1.GetQuotaResponse, error) {
	return &sandboxv1.GetQuotaResponse{TenantId: tenant.From(ctx), Limits: &sandboxv1.Quota{Vcpus: proto.Uint32(8)}, InUse: &sandboxv1.Quota{Vcpus: proto.Uint32(2)}}, nil
}

// SetQuota implements TenantService.
func (m *Mesh) SetQuota(_ context.Context, q *sandboxv1.SetQuotaRequest) (*sandboxv1.SetQuotaResponse, error) {
	return &sandboxv1.SetQuotaResponse{TenantId: q.GetTenantId(), Limits: q.GetLimits()}, nil
}

// ListAuditEvents implements TenantService.
func (m *Mesh) ListAuditEvents(ctx context.Context, _ *sandboxv1.ListAuditEventsRequest) (*sandboxv1.ListAuditEventsResponse, error) {
	return &sandboxv1.ListAuditEventsResponse{Events: []*sandboxv1.AuditEvent{{
		Id: 1, Time: timestamppb.Now(), TenantId: tenant.From(ctx), KeyId: "key_ADMIN", Method: "CreateSandbox", Target: "sb_1", Code: "OK",
	}}}, nil
}
