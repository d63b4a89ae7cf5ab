package peers

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/sandbox"
)

// Dial returns the pooled connection to a host agent.
type Dial func(addr string) (*grpc.ClientConn, error)

// Hosts implements sandbox.Hosts.
type Hosts struct {
	dial      Dial
	scheduler *Scheduler
}

var _ sandbox.Hosts = (*Hosts)(nil)

// NewHosts speaks to host agents, which the scheduler knows.
func NewHosts(dial Dial, scheduler *Scheduler) *Hosts {
	return &Hosts{dial: dial, scheduler: scheduler}
}

// call finds a host's client and calls it.
func call[R any](ctx context.Context, h *Hosts, hostID string, do func(hostv1.HostServiceClient) (R, error)) (R, error) {
	var none R
	addr, err := h.scheduler.address(ctx, hostID)
	if err != nil {
		return none, err
	}
	r, err := callAt(h, addr, do)
	if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
		return r, translate(ctx, "host "+hostID, err)
	}
	// A host agent that was started again may be elsewhere. Its calls may be repeated.
	if now := h.scheduler.moved(ctx, hostID, addr); now != "" {
		r, err = callAt(h, now, do)
	}
	return r, translate(ctx, "host "+hostID, err)
}

func callAt[R any](h *Hosts, addr string, do func(hostv1.HostServiceClient) (R, error)) (none R, err error) {
	c, err := h.dial(addr)
	if err != nil {
		return none, err
	}
	return do(hostv1.NewHostServiceClient(c))
}

// List implements sandbox.Hosts.
func (h *Hosts) List(ctx context.Context) ([]sandbox.Host, error) { return h.scheduler.list(ctx) }

// Address implements sandbox.Hosts.
func (h *Hosts) Address(ctx context.Context, hostID string) (string, error) {
	return h.scheduler.freshAddress(ctx, hostID)
}

// Start implements sandbox.Hosts.
func (h *Hosts) Start(ctx context.Context, hostID string, s sandbox.Start) (sandbox.Started, error) {
	r, err := call(ctx, h, hostID, func(c hostv1.HostServiceClient) (*hostv1.StartSandboxResponse, error) {
		return c.StartSandbox(ctx, &hostv1.StartSandboxRequest{Spec: spec(s), RestoreId: s.RestoreID})
	})
	if err != nil {
		return sandbox.Started{}, err
	}
	receipt, err := encodeReceipt(r.GetReceipt())
	sb := r.GetSandbox()
	return sandbox.Started{StateTime: stamp(sb.GetStateTime()), LastActiveTime: stamp(sb.GetLastActiveTime()), Receipt: receipt}, err
}

func encodeReceipt(r *sandboxv1.RestoreReceipt) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	return proto.Marshal(r)
}

var startKinds = map[sandbox.StartKind]sandboxv1.StartKind{
	sandbox.ColdBoot: sandboxv1.StartKind_START_KIND_COLD_BOOT,
	sandbox.Spawn:    sandboxv1.StartKind_START_KIND_SPAWN,
	sandbox.Resume:   sandboxv1.StartKind_START_KIND_RESUME,
	sandbox.Fork:     sandboxv1.StartKind_START_KIND_FORK,
}

var policies = map[sandbox.RestorePolicy]sandboxv1.RestorePolicy{
	sandbox.MemoryRequired: sandboxv1.RestorePolicy_RESTORE_POLICY_MEMORY_REQUIRED,
	sandbox.PreferMemory:   sandboxv1.RestorePolicy_RESTORE_POLICY_PREFER_MEMORY,
	sandbox.DiskOnly:       sandboxv1.RestorePolicy_RESTORE_POLICY_DISK_ONLY,
}

func spec(s sandbox.Start) *hostv1.SandboxSpec {
	sb := s.Sandbox
	p := &hostv1.SandboxSpec{
		SandboxId: sb.ID, TenantId: sb.Tenant, Vcpus: sb.VCPUs, MemoryMb: sb.MemoryMB, DiskMb: sb.DiskMB, TimeoutSec: sb.TimeoutSec,
		Env: sb.Env, ColdBoot: s.Kind == sandbox.ColdBoot, RestorePolicy: policies[s.Policy], Kind: startKinds[s.Kind],
		SnapshotId: s.SnapshotID,
		Network:    &sandboxv1.NetworkPolicy{Disabled: sb.Network.Disabled, AllowCidrs: sb.Network.AllowCIDRs, DenyCidrs: sb.Network.DenyCIDRs},
	}
	if s.SnapshotID == "" {
		p.Image = sb.Image
	}
	if !sb.ExpireTime.IsZero() {
		p.ExpireUnixMs = sb.ExpireTime.UnixMilli()
	}
	return p
}

// Destroy implements sandbox.Hosts.
func (h *Hosts) Destroy(ctx context.Context, hostID, sandboxID, restoreID string) error {
	_, err := call(ctx, h, hostID, func(c hostv1.HostServiceClient) (*hostv1.DestroySandboxResponse, error) {
		return c.DestroySandbox(ctx, &hostv1.DestroySandboxRequest{SandboxId: sandboxID, RestoreId: restoreID})
	})
	return err
}

// Pause implements sandbox.Hosts.
func (h *Hosts) Pause(ctx context.Context, hostID, sandboxID, restoreID, snapshotID string) (time.Time, error) {
	r, err := call(ctx, h, hostID, func(c hostv1.HostServiceClient) (*hostv1.PauseSandboxResponse, error) {
		return c.PauseSandbox(ctx, &hostv1.PauseSandboxRequest{SandboxId: sandboxID, SnapshotId: snapshotID, RestoreId: restoreID})
	})
	return stamp(r.GetSandbox().GetStateTime()), err
}

// Snapshot implements sandbox.Hosts.
func (h *Hosts) Snapshot(ctx context.Context, hostID, sandboxID, restoreID, snapshotID, name string, metadata map[string]string) (sandbox.Snapshot, error) {
	r, err := call(ctx, h, hostID, func(c hostv1.HostServiceClient) (*hostv1.SnapshotSandboxResponse, error) {
		return c.SnapshotSandbox(ctx, &hostv1.SnapshotSandboxRequest{
			SandboxId: sandboxID, SnapshotId: snapshotID, Kind: snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE, Name: name, Metadata: metadata, RestoreId: restoreID,
		})
	})
	return decodeSnapshot(r.GetSnapshot()), err
}

// Fork implements sandbox.Hosts.
func (h *Hosts) Fork(ctx context.Context, hostID, sandboxID, restoreID, snapshotID string, copies []string) (sandbox.Forked, error) {
	r, err := call(ctx, h, hostID, func(c hostv1.HostServiceClient) (*hostv1.ForkSandboxResponse, error) {
		return c.ForkSandbox(ctx, &hostv1.ForkSandboxRequest{SandboxId: sandboxID, SnapshotId: snapshotID, CopyIds: copies, RestoreId: restoreID})
	})
	if err != nil {
		return sandbox.Forked{}, err
	}
	lives := map[string]string{}
	for _, c := range r.GetCopies() {
		lives[c.GetSandboxId()] = c.GetRestoreId()
	}
	return sandbox.Forked{StoppedUsec: r.GetStats().GetStoppedUsec(), Lives: lives, Receipts: h.receipts(ctx, hostID, copies)}, nil
}

// receipts reads those of copies that run; one that cannot be read is missing.
func (h *Hosts) receipts(ctx context.Context, hostID string, ids []string) map[string][]byte {
	all := make([][]byte, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			if b, err := h.Receipt(ctx, hostID, id); err == nil {
				all[i] = b
			}
		})
	}
	wg.Wait()
	found := map[string][]byte{}
	for i, b := range all {
		if b != nil {
			found[ids[i]] = b
		}
	}
	return found
}

// Ping implements sandbox.Hosts.
func (h *Hosts) Ping(ctx context.Context, hostID, sandboxID string) (time.Time, error) {
	r, err := call(ctx, h, hostID, func(c hostv1.HostServiceClient) (*hostv1.PingSandboxResponse, error) {
		return c.PingSandbox(ctx, &hostv1.PingSandboxRequest{SandboxId: sandboxID})
	})
	return stamp(r.GetSandbox().GetLastActiveTime()), err
}

// Sandboxes implements sandbox.Hosts.
func (h *Hosts) Sandboxes(ctx context.Context, hostID string) ([]sandbox.HostSandbox, error) {
	r, err := call(ctx, h, hostID, func(c hostv1.HostServiceClient) (*hostv1.ListSandboxesResponse, error) {
		return c.ListSandboxes(ctx, &hostv1.ListSandboxesRequest{})
	})
	if err != nil {
		return nil, err
	}
	list := make([]sandbox.HostSandbox, len(r.GetSandboxes()))
	for i, sb := range r.GetSandboxes() {
		list[i] = decodeHostSandbox(sb)
	}
	return list, nil
}

var states = map[sandboxv1.State]sandbox.State{
	sandboxv1.State_STATE_PENDING:  sandbox.Pending,
	sandboxv1.State_STATE_STARTING: sandbox.Starting,
	sandboxv1.State_STATE_RUNNING:  sandbox.Running,
	sandboxv1.State_STATE_PAUSING:  sandbox.Pausing,
	sandboxv1.State_STATE_PAUSED:   sandbox.Paused,
	sandboxv1.State_STATE_RESUMING: sandbox.Resuming,
	sandboxv1.State_STATE_STOPPING: sandbox.Stopping,
	sandboxv1.State_STATE_STOPPED:  sandbox.Stopped,
	sandboxv1.State_STATE_FAILED:   sandbox.Failed,
}

func decodeHostSandbox(p *hostv1.HostSandbox) sandbox.HostSandbox {
	return sandbox.HostSandbox{
		ID: p.GetSandboxId(), State: states[p.GetState()], Reason: p.GetReason(), SnapshotID: p.GetSnapshotId(),
		AutoPaused: p.GetAutoPaused(), LastActiveTime: stamp(p.GetLastActiveTime()), StateTime: stamp(p.GetStateTime()),
		RestoreID: p.GetRestoreId(),
	}
}

// Watch implements sandbox.Hosts.
func (h *Hosts) Watch(ctx context.Context, hostID string, fn func(sandbox.HostSandbox)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := call(ctx, h, hostID, func(c hostv1.HostServiceClient) (grpc.ServerStreamingClient[hostv1.WatchSandboxesResponse], error) {
		return c.WatchSandboxes(ctx, &hostv1.WatchSandboxesRequest{})
	})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return translate(ctx, "host "+hostID, err)
		}
		if m.GetSandbox() != nil {
			fn(decodeHostSandbox(m.GetSandbox()))
		}
	}
}

// Receipt implements sandbox.Hosts.
func (h *Hosts) Receipt(ctx context.Context, hostID, sandboxID string) ([]byte, error) {
	r, err := call(ctx, h, hostID, func(c hostv1.HostServiceClient) (*hostv1.GetReceiptResponse, error) {
		return c.GetReceipt(ctx, &hostv1.GetReceiptRequest{SandboxId: sandboxID})
	})
	if err != nil {
		return nil, err
	}
	return encodeReceipt(r.GetReceipt())
}

// RemoveSnapshot implements sandbox.Hosts.
func (h *Hosts) RemoveSnapshot(ctx context.Context, hostID, snapshotID string) error {
	_, err := call(ctx, h, hostID, func(c hostv1.HostServiceClient) (*hostv1.RemoveSnapshotResponse, error) {
		return c.RemoveSnapshot(ctx, &hostv1.RemoveSnapshotRequest{SnapshotId: snapshotID})
	})
	return err
}

// stamp is a time that may be absent.
func stamp(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
