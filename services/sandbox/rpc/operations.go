package rpc

import (
	"context"

	"google.golang.org/grpc"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/sandbox"
)

type operations struct {
	sandboxv1.UnimplementedOperationsServiceServer
	Config
}

func (o *operations) DrainHost(r *sandboxv1.DrainHostRequest, stream grpc.ServerStreamingServer[sandboxv1.DrainHostResponse]) error {
	ctx := stream.Context()
	err := o.Service.Drain(ctx, r.GetHostId(), func(e sandbox.DrainEvent) error {
		return stream.Send(&sandboxv1.DrainHostResponse{
			Step: sandboxv1.DrainStep(sandboxv1.DrainStep_value["DRAIN_STEP_"+string(e.Step)]), SandboxId: e.SandboxID, HostId: e.HostID,
			Reason: e.Reason, Remaining: uint32(e.Remaining), Total: uint32(e.Total),
		})
	})
	return o.fail(ctx, err)
}

func (o *operations) CanRestoreSnapshot(ctx context.Context, r *sandboxv1.CanRestoreSnapshotRequest) (*sandboxv1.CanRestoreSnapshotResponse, error) {
	can, err := o.Service.CanRestore(ctx, o.Tenant(ctx), r.GetSnapshotId())
	if err != nil {
		return nil, o.fail(ctx, err)
	}
	resp := &sandboxv1.CanRestoreSnapshotResponse{SnapshotId: can.Manifest.ID, Driver: can.Manifest.VMM, Machine: can.Manifest.Machine, CpuFeatures: can.Manifest.CPUFeatures}
	for _, v := range can.Verdicts {
		resp.Verdicts = append(resp.Verdicts, &sandboxv1.RestoreVerdict{HostId: v.HostID, Can: v.Fits, Reasons: v.Reasons})
	}
	return resp, nil
}
