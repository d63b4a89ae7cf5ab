package rpc

import (
	"fmt"
	"maps"
	"net"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/scheduler/baseline"
	"github.com/coveyhq/covey/scheduler/book"
	"github.com/coveyhq/covey/scheduler/plan"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// maxAmount bounds each resource, so that sums stay far from overflow.
const maxAmount = 1 << 40

func toResources(field string, p *schedulerv1.Resources) (plan.Resources, error) {
	for name, n := range map[string]uint64{"memory_mb": p.GetMemoryMb(), "disk_mb": p.GetDiskMb()} {
		if n > maxAmount {
			return plan.Resources{}, apierr.Field(field+"."+name, fmt.Sprintf("must be at most %d, got %d", int64(maxAmount), n))
		}
	}
	return plan.Resources{
		VCPUs: int64(p.GetVcpus()), MemoryMB: int64(p.GetMemoryMb()), DiskMB: int64(p.GetDiskMb()), Slots: int64(p.GetSlots()),
	}, nil
}

func fromResources(r plan.Resources) *schedulerv1.Resources {
	return &schedulerv1.Resources{
		Vcpus: uint32(max(r.VCPUs, 0)), MemoryMb: uint64(max(r.MemoryMB, 0)), DiskMb: uint64(max(r.DiskMB, 0)), Slots: uint32(max(r.Slots, 0)),
	}
}

// toRequest checks a request. Field is what it stands in, "" or with a dot at its end.
func toRequest(field string, p *schedulerv1.PlaceRequest) (*plan.Request, error) {
	if p.GetSandboxId() == "" {
		return nil, apierr.Field(field+"sandbox_id", "is required")
	}
	r, err := toResources(field+"resources", p.GetResources())
	if err != nil {
		return nil, err
	}
	if r.VCPUs == 0 || r.MemoryMB == 0 {
		return nil, apierr.Field(field+"resources", fmt.Sprintf("must have at least 1 vCPU and 1 MiB of memory, got %s", r))
	}
	r.Slots = max(r.Slots, 1)
	if p.GetAntiAffinity() && p.GetSpreadKey() == "" {
		return nil, apierr.Field(field+"spread_key", "is required with anti_affinity")
	}
	return &plan.Request{
		SandboxID: p.GetSandboxId(), Resources: r, SnapshotID: p.GetSnapshotId(), CPUFeatures: p.GetCpuFeatures(), Driver: p.GetVmm(),
		Machine: p.GetMachine(), KernelID: p.GetKernelId(),
		Labels: p.GetHostLabels(), HostID: p.GetHostId(), Exclude: p.GetExcludeHostIds(), SpreadKey: spreadKey(p),
		Apart: p.GetAntiAffinity(), ApartFrom: p.GetApartFromHostIds(),
	}, nil
}

// spreadKey keeps the keys of tenants apart.
func spreadKey(p *schedulerv1.PlaceRequest) string {
	if p.GetSpreadKey() == "" {
		return ""
	}
	return p.GetTenantId() + "/" + p.GetSpreadKey()
}

var states = map[plan.State]schedulerv1.HostState{
	plan.Ready: schedulerv1.HostState_HOST_STATE_READY, plan.Cordoned: schedulerv1.HostState_HOST_STATE_CORDONED,
	plan.Draining: schedulerv1.HostState_HOST_STATE_DRAINING, plan.Lost: schedulerv1.HostState_HOST_STATE_LOST,
}

// toHost checks a host's account of itself. Its lists become the book's.
func toHost(p *schedulerv1.Host) (*plan.Host, error) {
	if p.GetId() == "" {
		return nil, apierr.Field("host.id", "is required")
	}
	if _, _, err := net.SplitHostPort(p.GetAddress()); err != nil {
		return nil, apierr.Field("host.address", fmt.Sprintf("must be host:port, got %q", p.GetAddress()))
	}
	capacity, err := toResources("host.capacity", p.GetCapacity())
	if err != nil {
		return nil, err
	}
	used, err := toResources("host.used", p.GetUsed())
	if err != nil {
		return nil, err
	}
	h := &plan.Host{
		ID: p.GetId(), Address: p.GetAddress(), Zone: p.GetZone(), Version: p.GetVersion(), State: plan.Ready, Capacity: capacity, Used: used,
		Running: int(p.GetRunning()), Labels: p.GetLabels(), CPUFeatures: p.GetCpuFeatures(), Drivers: p.GetDrivers(), Snapshots: p.GetCachedSnapshots(),
		Machines: p.GetMachines(), VMMVersion: p.GetVmmVersion(), KernelID: p.GetKernelId(), Baseline: p.GetCpuBaseline().GetFeatures(),
		BaselineGeneration: p.GetCpuBaseline().GetGeneration(),
	}
	switch p.GetState() {
	case schedulerv1.HostState_HOST_STATE_CORDONED:
		h.State = plan.Cordoned
	case schedulerv1.HostState_HOST_STATE_DRAINING:
		h.State = plan.Draining
	}
	return h, nil
}

// fromStatus copies what it gives out: the book's lists are being read elsewhere, but they never change.
func fromStatus(s book.Status) *schedulerv1.Host {
	return &schedulerv1.Host{
		Id: s.ID, Address: s.Address, State: states[s.State], Capacity: fromResources(s.Capacity), Used: fromResources(s.Used),
		Running: uint32(s.Running), Labels: maps.Clone(s.Labels), CpuFeatures: slices.Clone(s.CPUFeatures), Drivers: slices.Clone(s.Drivers),
		CachedSnapshots: slices.Clone(s.Snapshots), HeartbeatTime: timestamppb.New(s.Heard), Zone: s.Zone, Version: s.Version,
		Machines: slices.Clone(s.Machines), VmmVersion: s.VMMVersion, KernelId: s.KernelID,
		CpuBaseline: &schedulerv1.CpuBaseline{Features: slices.Clone(s.Baseline), Generation: s.BaselineGeneration},
	}
}

func fromBaseline(b baseline.Baseline) *schedulerv1.CpuBaseline {
	return &schedulerv1.CpuBaseline{Label: b.Label, Features: slices.Clone(b.Features), Generation: b.Generation}
}
