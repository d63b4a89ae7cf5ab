package transfer

import (
	"fmt"
	"strconv"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// Annotations carry what only hosts need.
const (
	tenantNote  = "tenant_id"
	imageIDNote = "image_id"
	storedNote  = "stored_bytes"
)

var kinds = map[machine.SnapshotKind]snapshotv1.SnapshotKind{
	machine.TemplateSnapshot: snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE,
	machine.PauseSnapshot:    snapshotv1.SnapshotKind_SNAPSHOT_KIND_PAUSE,
	machine.ImageSnapshot:    snapshotv1.SnapshotKind_SNAPSHOT_KIND_IMAGE,
	machine.ForkSnapshot:     snapshotv1.SnapshotKind_SNAPSHOT_KIND_FORK,
}

func toObject(o snapstore.Object) *snapshotv1.ObjectRef {
	return &snapshotv1.ObjectRef{Key: o.Key, SizeBytes: o.Size, Sha256: o.SHA256[:]}
}

// toManifest is what the registry keeps of a record.
func toManifest(r *snapstore.Record) *snapshotv1.Manifest {
	m := r.Manifest
	p := &snapshotv1.Manifest{
		SnapshotId: m.ID, ParentId: m.ParentID, Generation: uint32(m.Generation), Vmm: m.Driver, VmmVersion: m.Version, Machine: m.Machine,
		Accel: m.Accel, Vcpus: uint32(m.VCPUs), MemoryBytes: m.MemoryBytes, DiskBytes: m.DiskBytes, KernelId: m.KernelID, CpuFeatures: m.CPUFeatures,
		State: toObject(r.State), MemoryHeader: toObject(r.MemoryHeader), DiskHeader: toObject(r.DiskHeader), Image: m.Image,
		SourceSandboxId: m.SourceSandboxID, CreateTime: timestamppb.New(m.CreateTime),
		Annotations: map[string]string{tenantNote: m.Tenant, imageIDNote: m.ImageID, storedNote: strconv.FormatInt(m.StoredBytes, 10)},
	}
	if r.WorkingSet != nil {
		p.WorkingSet = toObject(*r.WorkingSet)
	}
	for _, b := range r.Builds {
		p.Builds = append(p.Builds, &snapshotv1.BuildRef{Id: b.ID.String(), Kind: b.Kind, Data: toObject(b.Data)})
	}
	return p
}

func toRegistration(r *snapstore.Record, hostID string) *snapshotv1.RegisterSnapshotRequest {
	return &snapshotv1.RegisterSnapshotRequest{
		TenantId: r.Manifest.Tenant, Kind: kinds[r.Manifest.Kind], Name: r.Manifest.Name, Metadata: r.Manifest.Labels, HostId: hostID,
		Manifest: toManifest(r),
	}
}

// fromManifest makes the record of a snapshot. A snapshot that was registered as a copy of another one names objects with the other's
// id; here each has its own, and renamed tells what the registry calls them.
func fromManifest(snap *snapshotv1.Snapshot, p *snapshotv1.Manifest) (r *snapstore.Record, renamed map[string]string, err error) {
	id := p.GetSnapshotId()
	r = &snapstore.Record{Manifest: machine.Manifest{
		ID: id, ParentID: p.GetParentId(), Name: snap.GetName(), Labels: snap.GetMetadata(), Tenant: p.GetAnnotations()[tenantNote],
		Generation: int(p.GetGeneration()), Driver: p.GetVmm(), Version: p.GetVmmVersion(), Machine: p.GetMachine(), Accel: p.GetAccel(),
		VCPUs: int(p.GetVcpus()), MemoryBytes: p.GetMemoryBytes(), DiskBytes: p.GetDiskBytes(), KernelID: p.GetKernelId(), CPUFeatures: p.GetCpuFeatures(), Image: p.GetImage(),
		ImageID: p.GetAnnotations()[imageIDNote], SourceSandboxID: p.GetSourceSandboxId(), CreateTime: p.GetCreateTime().AsTime(),
	}}
	for k, v := range kinds {
		if v == snap.GetKind() {
			r.Manifest.Kind = k
		}
	}
	// Only told to people; what does not parse is not known.
	r.Manifest.StoredBytes, _ = strconv.ParseInt(p.GetAnnotations()[storedNote], 10, 64)
	renamed = map[string]string{}
	own := func(name string, o *snapshotv1.ObjectRef, to *snapstore.Object) {
		to.Key = "snapshots/" + id + "/" + name
		if o.GetKey() != to.Key {
			renamed[to.Key] = o.GetKey()
		}
		if err == nil {
			err = fromObject(o, to)
		}
	}
	own("state", p.GetState(), &r.State)
	own("memory.hdr", p.GetMemoryHeader(), &r.MemoryHeader)
	own("disk.hdr", p.GetDiskHeader(), &r.DiskHeader)
	if p.GetWorkingSet() != nil {
		r.WorkingSet = &snapstore.Object{}
		own("working-set", p.GetWorkingSet(), r.WorkingSet)
	}
	if err != nil {
		return nil, nil, err
	}
	return r, renamed, addBuilds(r, p)
}

func addBuilds(r *snapstore.Record, p *snapshotv1.Manifest) error {
	for _, b := range p.GetBuilds() {
		id, err := snapfmt.ParseID(b.GetId())
		if err != nil {
			return fmt.Errorf("build %.80q: %w", b.GetId(), err)
		}
		build := snapstore.Build{ID: id, Kind: b.GetKind(), Data: snapstore.Object{Key: b.GetData().GetKey()}}
		if err := fromObject(b.GetData(), &build.Data); err != nil {
			return err
		}
		r.Builds = append(r.Builds, build)
		switch b.GetKind() {
		case "memory":
			r.Manifest.MemoryBuilds = append(r.Manifest.MemoryBuilds, b.GetId())
		case "disk":
			r.Manifest.DiskBuilds = append(r.Manifest.DiskBuilds, b.GetId())
		}
	}
	return nil
}

// fromObject fills in all but the key.
func fromObject(p *snapshotv1.ObjectRef, to *snapstore.Object) error {
	to.Size = p.GetSizeBytes()
	if len(p.GetSha256()) != len(to.SHA256) {
		return fmt.Errorf("object %.200q has a SHA-256 of %d bytes, not %d", p.GetKey(), len(p.GetSha256()), len(to.SHA256))
	}
	copy(to.SHA256[:], p.GetSha256())
	return nil
}
