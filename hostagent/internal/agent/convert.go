package agent

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

var stateOf = map[machine.State]sandboxv1.State{
	machine.Starting: sandboxv1.State_STATE_STARTING,
	machine.Running:  sandboxv1.State_STATE_RUNNING,
	machine.Pausing:  sandboxv1.State_STATE_PAUSING,
	machine.Paused:   sandboxv1.State_STATE_PAUSED,
	machine.Stopping: sandboxv1.State_STATE_STOPPING,
	machine.Stopped:  sandboxv1.State_STATE_STOPPED,
	machine.Failed:   sandboxv1.State_STATE_FAILED,
}

var kindOf = map[machine.Kind]sandboxv1.StartKind{
	machine.ColdBoot: sandboxv1.StartKind_START_KIND_COLD_BOOT,
	machine.Spawn:    sandboxv1.StartKind_START_KIND_SPAWN,
	machine.Resume:   sandboxv1.StartKind_START_KIND_RESUME,
	machine.ForkCopy: sandboxv1.StartKind_START_KIND_FORK,
	machine.DiskBoot: sandboxv1.StartKind_START_KIND_DISK_BOOT,
}

var policyOf = map[machine.RestorePolicy]sandboxv1.RestorePolicy{
	"":                     sandboxv1.RestorePolicy_RESTORE_POLICY_UNSPECIFIED,
	machine.MemoryRequired: sandboxv1.RestorePolicy_RESTORE_POLICY_MEMORY_REQUIRED,
	machine.PreferMemory:   sandboxv1.RestorePolicy_RESTORE_POLICY_PREFER_MEMORY,
	machine.DiskOnly:       sandboxv1.RestorePolicy_RESTORE_POLICY_DISK_ONLY,
}

var snapshotKindOf = map[machine.SnapshotKind]snapshotv1.SnapshotKind{
	machine.TemplateSnapshot: snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE,
	machine.PauseSnapshot:    snapshotv1.SnapshotKind_SNAPSHOT_KIND_PAUSE,
	machine.ImageSnapshot:    snapshotv1.SnapshotKind_SNAPSHOT_KIND_IMAGE,
	machine.ForkSnapshot:     snapshotv1.SnapshotKind_SNAPSHOT_KIND_FORK,
}

// inverse finds the domain's word for a number of the contract; its zero value where there is none.
func inverse[D, P comparable](m map[D]P, p P) (d D) {
	for k, v := range m {
		if v == p {
			return k
		}
	}
	return d
}

func decodeSpec(p *hostv1.SandboxSpec) machine.Spec {
	s := machine.Spec{
		ID: p.GetSandboxId(), Tenant: p.GetTenantId(), Image: p.GetImage(), SnapshotID: p.GetSnapshotId(),
		VCPUs: int(p.GetVcpus()), MemoryMB: int64(p.GetMemoryMb()), DiskMB: int64(p.GetDiskMb()),
		Timeout: time.Duration(p.GetTimeoutSec()) * time.Second, Env: p.GetEnv(), ColdBoot: p.GetColdBoot(),
		Network: machine.Network{
			Disabled: p.GetNetwork().GetDisabled(), AllowCIDRs: p.GetNetwork().GetAllowCidrs(), DenyCIDRs: p.GetNetwork().GetDenyCidrs(),
		},
		Policy: inverse(policyOf, p.GetRestorePolicy()), Kind: inverse(kindOf, p.GetKind()),
	}
	if ms := p.GetExpireUnixMs(); ms > 0 {
		s.Expire = time.UnixMilli(ms)
	}
	return s
}

func encodeSpec(s machine.Spec) *hostv1.SandboxSpec {
	p := &hostv1.SandboxSpec{
		SandboxId: s.ID, TenantId: s.Tenant, Image: s.Image, SnapshotId: s.SnapshotID,
		Vcpus: uint32(s.VCPUs), MemoryMb: uint32(s.MemoryMB), DiskMb: uint32(s.DiskMB),
		TimeoutSec: uint32(s.Timeout / time.Second), Env: s.Env, ColdBoot: s.ColdBoot,
		Network:       &sandboxv1.NetworkPolicy{Disabled: s.Network.Disabled, AllowCidrs: s.Network.AllowCIDRs, DenyCidrs: s.Network.DenyCIDRs},
		RestorePolicy: policyOf[s.Policy], Kind: kindOf[s.Kind],
	}
	if !s.Expire.IsZero() {
		p.ExpireUnixMs = s.Expire.UnixMilli()
	}
	return p
}

// encodeSandbox leaves the environment out: it may have secrets, and whoever asks has sent it.
func encodeSandbox(st machine.Status) *hostv1.HostSandbox {
	spec := encodeSpec(st.Spec)
	spec.Env = nil
	return &hostv1.HostSandbox{
		SandboxId: st.Spec.ID, State: stateOf[st.State], Reason: st.Reason, SnapshotId: st.SnapshotID, AutoPaused: st.AutoPaused,
		LastActiveTime: timestamppb.New(st.LastActive), Pid: int32(st.PID), Spec: spec, StateTime: timestamppb.New(st.StateTime), RestoreId: st.RestoreID,
	}
}

func (s *Service) encodeReceipt(r machine.Receipt) *sandboxv1.RestoreReceipt {
	caps := s.host.Capabilities()
	p := &sandboxv1.RestoreReceipt{
		RestoreId: r.RestoreID, SandboxId: r.SandboxID, Kind: kindOf[r.Kind], SnapshotId: r.SnapshotID, Generation: uint32(r.Generation),
		MemoryBuilds: r.MemoryBuilds, DiskBuilds: r.DiskBuilds, TotalUsec: r.Total.Microseconds(), FirstExecUsec: r.FirstExec.Microseconds(),
		Attestation: &sandboxv1.Attestation{
			EntropyReseeded: r.Attestation.EntropyReseeded, ClockStepNs: int64(r.Attestation.ClockStep), MachineId: r.Attestation.MachineID,
			Hostname: r.Attestation.Hostname, StreamsEnded: uint32(r.Attestation.StreamsEnded),
		},
		FallbackReason: r.Fallback, HostId: s.info.ID, Vmm: fmt.Sprintf("%s %s %s", caps.Driver, caps.Version, caps.Accel),
		StartTime: timestamppb.New(r.StartTime),
	}
	// Whole microseconds that still sum to the total: what rounding takes from one phase the next one gets.
	var until time.Duration
	for _, ph := range r.Phases {
		from := until
		until += ph.Duration
		p.Phases = append(p.Phases, &sandboxv1.Phase{Name: ph.Name, DurationUsec: until.Microseconds() - from.Microseconds()})
	}
	for _, src := range r.PageSources {
		p.PageSources = append(p.PageSources, &sandboxv1.PageSource{Source: src.Source, Pages: src.Pages, Bytes: src.Bytes})
	}
	return p
}

func encodeStats(s machine.SaveStats) *hostv1.SnapshotStats {
	return &hostv1.SnapshotStats{
		StoppedUsec: s.Stopped.Microseconds(), TotalUsec: s.Total.Microseconds(), MemoryDirtyBytes: s.MemoryDirty, MemoryWrittenBytes: s.MemoryWritten,
		DiskDirtyBytes: s.DiskDirty, DiskWrittenBytes: s.DiskWritten, StoredBytes: s.Stored,
	}
}

func (s *Service) encodeSnapshot(m machine.Manifest) *snapshotv1.Snapshot {
	return &snapshotv1.Snapshot{
		Id: m.ID, Name: m.Name, Kind: snapshotKindOf[m.Kind], State: snapshotv1.SnapshotState_SNAPSHOT_STATE_LOCAL,
		SourceSandboxId: m.SourceSandboxID, ParentId: m.ParentID, Vcpus: uint32(m.VCPUs), MemoryMb: uint32(m.MemoryBytes >> 20),
		DiskMb: uint32(m.DiskBytes >> 20), UniqueBytes: m.StoredBytes, Generation: uint32(m.Generation),
		CreateTime: timestamppb.New(m.CreateTime), Metadata: m.Labels, HostId: s.info.ID, Vmm: m.Driver,
	}
}

func encodeHistory(samples []machine.Sample) []*hostv1.MetricsSample {
	out := make([]*hostv1.MetricsSample, len(samples))
	for i, x := range samples {
		out[i] = &hostv1.MetricsSample{
			Time: timestamppb.New(x.Time), CpuUsec: x.CPU.Microseconds(), CpuFraction: x.Share, GuestPrivateBytes: x.Private, DiskOverlayBytes: x.Overlay,
		}
	}
	return out
}

func encodeRoom(r machine.Room) *schedulerv1.Resources {
	return &schedulerv1.Resources{Vcpus: uint32(r.VCPUs), MemoryMb: uint64(r.MemoryMB), DiskMb: uint64(r.DiskMB), Slots: uint32(r.Slots)}
}
