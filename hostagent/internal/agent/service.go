package agent

import (
	"context"
	"log/slog"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Info describes the host to the mesh.
type Info struct {
	ID string
	// Address is where others reach this agent, host:port; asked for when it is needed, as it is known only once it listens.
	Address func() string
	Labels  map[string]string
	Zone    string
	Version string
	// KernelID names the kernel that guests are booted with.
	KernelID string
}

// Service implements covey.host.v1.HostService.
type Service struct {
	hostv1.UnimplementedHostServiceServer
	host *machine.Host
	info Info
	log  *slog.Logger
}

// NewService serves a host.
func NewService(host *machine.Host, info Info, log *slog.Logger) *Service {
	return &Service{host: host, info: info, log: log}
}

// StartSandbox implements hostv1.HostServiceServer.
func (s *Service) StartSandbox(ctx context.Context, r *hostv1.StartSandboxRequest) (*hostv1.StartSandboxResponse, error) {
	spec := decodeSpec(r.GetSpec())
	started, err := s.host.Start(ctx, spec, r.GetRestoreId())
	if err != nil {
		return nil, toStatus(ctx, s.log, "start", spec.ID, err)
	}
	return &hostv1.StartSandboxResponse{Sandbox: encodeSandbox(started.Status), Receipt: s.encodeReceipt(started.Receipt)}, nil
}

// DestroySandbox implements hostv1.HostServiceServer.
func (s *Service) DestroySandbox(ctx context.Context, r *hostv1.DestroySandboxRequest) (*hostv1.DestroySandboxResponse, error) {
	if err := s.host.Destroy(ctx, r.GetSandboxId(), r.GetRestoreId()); err != nil {
		return nil, toStatus(ctx, s.log, "destroy", r.GetSandboxId(), err)
	}
	return &hostv1.DestroySandboxResponse{}, nil
}

// with finds a machine and does something with it.
func with[R any](ctx context.Context, s *Service, op, id string, do func(*machine.Machine) (R, error)) (R, error) {
	return withLife(ctx, s, op, id, "", do)
}

// withLife is with for what must not be done to another life of the sandbox than the one meant; an empty restoreID means any.
//
// A ping needs none: a late one resets the timer of a later life once, which is harmless. Nor does what only reads.
func withLife[R any](ctx context.Context, s *Service, op, id, restoreID string, do func(*machine.Machine) (R, error)) (R, error) {
	m, err := s.host.FindLife(id, restoreID)
	if err != nil {
		var none R
		return none, toStatus(ctx, s.log, op, id, err)
	}
	r, err := do(m)
	return r, toStatus(ctx, s.log, op, id, err)
}

// PauseSandbox implements hostv1.HostServiceServer.
func (s *Service) PauseSandbox(ctx context.Context, r *hostv1.PauseSandboxRequest) (*hostv1.PauseSandboxResponse, error) {
	return withLife(ctx, s, "pause", r.GetSandboxId(), r.GetRestoreId(), func(m *machine.Machine) (*hostv1.PauseSandboxResponse, error) {
		st, stats, err := m.Pause(ctx, r.GetSnapshotId())
		if err != nil {
			return nil, err
		}
		return &hostv1.PauseSandboxResponse{Sandbox: encodeSandbox(st), Stats: encodeStats(stats)}, nil
	})
}

// SnapshotSandbox implements hostv1.HostServiceServer.
func (s *Service) SnapshotSandbox(ctx context.Context, r *hostv1.SnapshotSandboxRequest) (*hostv1.SnapshotSandboxResponse, error) {
	return withLife(ctx, s, "snapshot", r.GetSandboxId(), r.GetRestoreId(), func(m *machine.Machine) (*hostv1.SnapshotSandboxResponse, error) {
		kind := inverse(snapshotKindOf, r.GetKind())
		if kind == "" {
			kind = machine.TemplateSnapshot
		}
		saved, err := m.Snapshot(ctx, machine.SnapshotRequest{ID: r.GetSnapshotId(), Kind: kind, Name: r.GetName(), Labels: r.GetMetadata()})
		if err != nil {
			return nil, err
		}
		return &hostv1.SnapshotSandboxResponse{Snapshot: s.encodeSnapshot(saved.Manifest), Stats: encodeStats(saved.Stats)}, nil
	})
}

// ForkSandbox implements hostv1.HostServiceServer.
func (s *Service) ForkSandbox(ctx context.Context, r *hostv1.ForkSandboxRequest) (*hostv1.ForkSandboxResponse, error) {
	return withLife(ctx, s, "fork", r.GetSandboxId(), r.GetRestoreId(), func(m *machine.Machine) (*hostv1.ForkSandboxResponse, error) {
		copies, stats, err := m.Fork(ctx, r.GetSnapshotId(), r.GetCopyIds())
		if err != nil {
			return nil, err
		}
		out := &hostv1.ForkSandboxResponse{Stats: encodeStats(stats)}
		for _, c := range copies {
			out.Copies = append(out.Copies, encodeSandbox(c))
		}
		return out, nil
	})
}

// PingSandbox implements hostv1.HostServiceServer.
func (s *Service) PingSandbox(ctx context.Context, r *hostv1.PingSandboxRequest) (*hostv1.PingSandboxResponse, error) {
	return with(ctx, s, "ping", r.GetSandboxId(), func(m *machine.Machine) (*hostv1.PingSandboxResponse, error) {
		if _, err := m.Guest("ping"); err != nil {
			return nil, err
		}
		m.Touch()
		return &hostv1.PingSandboxResponse{Sandbox: encodeSandbox(m.Status())}, nil
	})
}

// ListSandboxes implements hostv1.HostServiceServer.
func (s *Service) ListSandboxes(context.Context, *hostv1.ListSandboxesRequest) (*hostv1.ListSandboxesResponse, error) {
	out := &hostv1.ListSandboxesResponse{HostId: s.info.ID}
	for _, st := range s.host.List() {
		out.Sandboxes = append(out.Sandboxes, encodeSandbox(st))
	}
	return out, nil
}

// GetHost implements hostv1.HostServiceServer.
func (s *Service) GetHost(context.Context, *hostv1.GetHostRequest) (*hostv1.GetHostResponse, error) {
	return &hostv1.GetHostResponse{Host: s.describe()}, nil
}

// describe is the host as the scheduler knows it.
func (s *Service) describe() *schedulerv1.Host {
	caps, baseline := s.host.Capabilities(), s.host.Baseline()
	h := &schedulerv1.Host{
		Id: s.info.ID, Address: s.info.Address(), State: schedulerv1.HostState_HOST_STATE_READY,
		Capacity: encodeRoom(s.host.Ledger().Capacity()), Used: encodeRoom(s.host.Ledger().Used()),
		Labels: s.info.Labels, CpuFeatures: caps.CPUFeatures, Machines: caps.Machines, VmmVersion: caps.Version, KernelId: s.info.KernelID, Drivers: []string{caps.Driver + "/" + string(caps.Accel)},
		CachedSnapshots: s.host.Snapshots(), HeartbeatTime: timestamppb.Now(), Zone: s.info.Zone, Version: s.info.Version,
		CpuBaseline: &schedulerv1.CpuBaseline{Features: baseline.Features, Generation: baseline.Generation},
	}
	for _, st := range s.host.List() {
		if st.State == machine.Running {
			h.Running++
		}
	}
	return h
}

// GetReceipt implements hostv1.HostServiceServer.
func (s *Service) GetReceipt(ctx context.Context, r *hostv1.GetReceiptRequest) (*hostv1.GetReceiptResponse, error) {
	return with(ctx, s, "receipt", r.GetSandboxId(), func(m *machine.Machine) (*hostv1.GetReceiptResponse, error) {
		return &hostv1.GetReceiptResponse{Receipt: s.encodeReceipt(m.Receipt())}, nil
	})
}

// GetSandboxMetrics implements hostv1.HostServiceServer.
func (s *Service) GetSandboxMetrics(ctx context.Context, r *hostv1.GetSandboxMetricsRequest) (*hostv1.GetSandboxMetricsResponse, error) {
	return with(ctx, s, "metrics", r.GetSandboxId(), func(m *machine.Machine) (*hostv1.GetSandboxMetricsResponse, error) {
		u, err := m.Usage(ctx)
		if err != nil {
			return nil, err
		}
		return &hostv1.GetSandboxMetricsResponse{
			History: encodeHistory(m.History()),
			CpuUsec: u.CPU.Microseconds(), GuestPrivateBytes: u.Private, HostPssBytes: u.PSS, DiskOverlayBytes: u.Overlay,
			GuestMemoryTotalBytes: u.Guest.MemoryTotal, GuestMemoryAvailableBytes: u.Guest.MemoryAvailable, GuestCpuBusyUsec: u.Guest.CPUBusy.Microseconds(),
		}, nil
	})
}

// RemoveSnapshot implements hostv1.HostServiceServer.
func (s *Service) RemoveSnapshot(ctx context.Context, r *hostv1.RemoveSnapshotRequest) (*hostv1.RemoveSnapshotResponse, error) {
	if err := s.host.RemoveSnapshot(ctx, r.GetSnapshotId()); err != nil {
		return nil, toStatus(ctx, s.log, "removal of snapshot "+r.GetSnapshotId(), "", err)
	}
	return &hostv1.RemoveSnapshotResponse{}, nil
}
