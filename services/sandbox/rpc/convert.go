package rpc

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/sandbox"
)

var toState = map[sandbox.State]sandboxv1.State{
	sandbox.Pending:  sandboxv1.State_STATE_PENDING,
	sandbox.Starting: sandboxv1.State_STATE_STARTING,
	sandbox.Running:  sandboxv1.State_STATE_RUNNING,
	sandbox.Pausing:  sandboxv1.State_STATE_PAUSING,
	sandbox.Paused:   sandboxv1.State_STATE_PAUSED,
	sandbox.Resuming: sandboxv1.State_STATE_RESUMING,
	sandbox.Stopping: sandboxv1.State_STATE_STOPPING,
	sandbox.Stopped:  sandboxv1.State_STATE_STOPPED,
	sandbox.Failed:   sandboxv1.State_STATE_FAILED,
}

// fromStates keeps what it does not know as it is, for validation to refuse it by name.
func fromStates(in []sandboxv1.State) []sandbox.State {
	var out []sandbox.State
	for _, p := range in {
		s := sandbox.State(p.String())
		for k, v := range toState {
			if v == p {
				s = k
			}
		}
		out = append(out, s)
	}
	return out
}

func fromPolicy(p sandboxv1.RestorePolicy) sandbox.RestorePolicy {
	switch p {
	case sandboxv1.RestorePolicy_RESTORE_POLICY_UNSPECIFIED:
		return ""
	case sandboxv1.RestorePolicy_RESTORE_POLICY_MEMORY_REQUIRED:
		return sandbox.MemoryRequired
	case sandboxv1.RestorePolicy_RESTORE_POLICY_PREFER_MEMORY:
		return sandbox.PreferMemory
	case sandboxv1.RestorePolicy_RESTORE_POLICY_DISK_ONLY:
		return sandbox.DiskOnly
	}
	return sandbox.RestorePolicy(p.String())
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func toSandbox(sb sandbox.Sandbox) *sandboxv1.Sandbox {
	return &sandboxv1.Sandbox{
		Id: sb.ID, State: toState[sb.State], Reason: sb.Reason, Template: sb.Template, Vcpus: sb.VCPUs, MemoryMb: sb.MemoryMB,
		DiskMb: sb.DiskMB, TimeoutSec: sb.TimeoutSec, Metadata: sb.Metadata, HostId: sb.HostID, CreateTime: stamp(sb.CreateTime),
		StateTime: stamp(sb.StateTime), LastActiveTime: stamp(sb.LastActiveTime), SnapshotId: sb.SnapshotID, AutoResume: sb.AutoResume,
		MaxLifetimeSec: sb.MaxLifetimeSec, Version: sb.Version, ParentId: sb.ParentID, Durable: sb.Durable,
	}
}

func toSandboxes(in []sandbox.Sandbox) []*sandboxv1.Sandbox {
	out := make([]*sandboxv1.Sandbox, len(in))
	for i, sb := range in {
		out[i] = toSandbox(sb)
	}
	return out
}

func fromCreate(r *sandboxv1.CreateSandboxRequest) sandbox.CreateRequest {
	return sandbox.CreateRequest{
		Template: r.GetTemplate(), VCPUs: r.GetVcpus(), MemoryMB: r.GetMemoryMb(), DiskMB: r.GetDiskMb(), TimeoutSec: r.GetTimeoutSec(),
		MaxLifetimeSec: r.GetMaxLifetimeSec(), Metadata: r.GetMetadata(), Env: r.GetEnv(), AutoResume: r.GetAutoResume(),
		Network: sandbox.Network{
			Disabled: r.GetNetwork().GetDisabled(), AllowCIDRs: r.GetNetwork().GetAllowCidrs(), DenyCIDRs: r.GetNetwork().GetDenyCidrs(),
		},
		ColdBoot: r.GetColdBoot(), RestorePolicy: fromPolicy(r.GetRestorePolicy()), HostLabels: r.GetHostLabels(), AntiAffinity: r.GetAntiAffinity(), RequestID: r.GetRequestId(),
	}
}

func toSnapshot(s sandbox.Snapshot) *snapshotv1.Snapshot {
	return &snapshotv1.Snapshot{
		Id: s.ID, Name: s.Name, Kind: snapshotv1.SnapshotKind(s.Kind), State: snapshotv1.SnapshotState(s.State),
		SourceSandboxId: s.SourceSandboxID, ParentId: s.ParentID, Vcpus: s.VCPUs, MemoryMb: s.MemoryMB, DiskMb: s.DiskMB,
		UniqueBytes: s.UniqueBytes, SharedBytes: s.SharedBytes, Generation: s.Generation, CreateTime: stamp(s.CreateTime),
		Metadata: s.Metadata, HostId: s.HostID, Vmm: s.VMM,
	}
}

func toKey(k sandbox.Key) *sandboxv1.Key {
	return &sandboxv1.Key{
		Id: k.ID, Name: k.Name, Scopes: k.Scopes, TenantId: k.Tenant, CreateTime: stamp(k.CreateTime),
		LastUseTime: stamp(k.LastUseTime), RevokeTime: stamp(k.RevokeTime),
	}
}
