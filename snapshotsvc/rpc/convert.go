package rpc

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/snapshotsvc/registry"
)

var toKind = map[registry.SnapshotKind]snapshotv1.SnapshotKind{
	registry.Template: snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE,
	registry.Pause:    snapshotv1.SnapshotKind_SNAPSHOT_KIND_PAUSE,
	registry.Image:    snapshotv1.SnapshotKind_SNAPSHOT_KIND_IMAGE,
	registry.Fork:     snapshotv1.SnapshotKind_SNAPSHOT_KIND_FORK,
}

var toState = map[registry.State]snapshotv1.SnapshotState{
	registry.Local:    snapshotv1.SnapshotState_SNAPSHOT_STATE_LOCAL,
	registry.Durable:  snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE,
	registry.Deleting: snapshotv1.SnapshotState_SNAPSHOT_STATE_DELETING,
}

// fromKind keeps what it does not know as it is, for validation to refuse it by name.
func fromKind(p snapshotv1.SnapshotKind) registry.SnapshotKind {
	for k, v := range toKind {
		if v == p {
			return k
		}
	}
	return registry.SnapshotKind(p.String())
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func toSnapshot(s registry.Snapshot) *snapshotv1.Snapshot {
	m := s.Manifest
	return &snapshotv1.Snapshot{
		Id: s.ID, Name: s.Name, Kind: toKind[s.Kind], State: toState[s.State], SourceSandboxId: m.SourceSandboxID, ParentId: m.ParentID,
		Vcpus: m.VCPUs, MemoryMb: uint32(m.MemoryBytes >> 20), DiskMb: uint32(m.DiskBytes >> 20),
		UniqueBytes: s.UniqueBytes, SharedBytes: s.SharedBytes, Generation: m.Generation, CreateTime: stamp(m.CreateTime),
		Metadata: s.Metadata, HostId: s.HostID, Vmm: m.VMM,
	}
}

func toObject(o *registry.Object) *snapshotv1.ObjectRef {
	if o == nil {
		return nil
	}
	return &snapshotv1.ObjectRef{Key: o.Key, SizeBytes: o.Size, Sha256: o.SHA256}
}

func fromObject(p *snapshotv1.ObjectRef) *registry.Object {
	if p == nil {
		return nil
	}
	return &registry.Object{Key: p.GetKey(), Size: p.GetSizeBytes(), SHA256: p.GetSha256()}
}

func toManifest(m registry.Manifest) *snapshotv1.Manifest {
	p := &snapshotv1.Manifest{
		SnapshotId: m.SnapshotID, ParentId: m.ParentID, Generation: m.Generation, Vmm: m.VMM, VmmVersion: m.VMMVersion, Machine: m.Machine,
		Accel: m.Accel, Vcpus: m.VCPUs, MemoryBytes: m.MemoryBytes, DiskBytes: m.DiskBytes, KernelId: m.KernelID, CpuFeatures: m.CPUFeatures,
		State: toObject(m.State), MemoryHeader: toObject(m.MemoryHeader), DiskHeader: toObject(m.DiskHeader), WorkingSet: toObject(m.WorkingSet),
		Image: m.Image, SourceSandboxId: m.SourceSandboxID, CreateTime: stamp(m.CreateTime), Annotations: m.Annotations,
	}
	for i := range m.Builds {
		b := &m.Builds[i]
		p.Builds = append(p.Builds, &snapshotv1.BuildRef{Id: b.ID, Kind: b.Kind, Data: toObject(&b.Data)})
	}
	return p
}

func fromManifest(p *snapshotv1.Manifest) registry.Manifest {
	m := registry.Manifest{
		SnapshotID: p.GetSnapshotId(), ParentID: p.GetParentId(), Generation: p.GetGeneration(), VMM: p.GetVmm(), VMMVersion: p.GetVmmVersion(),
		Machine: p.GetMachine(), Accel: p.GetAccel(), VCPUs: p.GetVcpus(), MemoryBytes: p.GetMemoryBytes(), DiskBytes: p.GetDiskBytes(),
		KernelID: p.GetKernelId(), CPUFeatures: p.GetCpuFeatures(), State: fromObject(p.GetState()), MemoryHeader: fromObject(p.GetMemoryHeader()),
		DiskHeader: fromObject(p.GetDiskHeader()), WorkingSet: fromObject(p.GetWorkingSet()), Image: p.GetImage(),
		SourceSandboxID: p.GetSourceSandboxId(), Annotations: p.GetAnnotations(),
	}
	if p.GetCreateTime() != nil {
		m.CreateTime = p.GetCreateTime().AsTime()
	}
	for _, b := range p.GetBuilds() {
		build := registry.Build{ID: b.GetId(), Kind: b.GetKind()}
		if o := fromObject(b.GetData()); o != nil {
			build.Data = *o
		}
		m.Builds = append(m.Builds, build)
	}
	return m
}
