package rpc_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// serve runs a gRPC server on loopback until the test ends.
func serve(t testing.TB, register func(*grpc.Server)) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(lis) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return lis.Addr().String()
}

// fakeHost is a host agent without VMs. Hooks, where set, are called first, without the lock.
type fakeHost struct {
	hostv1.UnimplementedHostServiceServer
	id, addr string
	registry *fakeRegistry

	mu         sync.Mutex // guards all below
	here       map[string]*hostv1.HostSandbox
	receipts   map[string]*sandboxv1.RestoreReceipt
	watchers   map[chan *hostv1.HostSandbox]struct{}
	calls      []string
	onStart    func(*hostv1.StartSandboxRequest) error
	onPause    func(*hostv1.PauseSandboxRequest) error
	onFork     func(*hostv1.ForkSandboxRequest) error
	onSnapshot func(*hostv1.SnapshotSandboxRequest) error
	onDestroy  func(*hostv1.DestroySandboxRequest)
	// down makes every call UNAVAILABLE.
	down bool
}

func newFakeHost(t testing.TB, id string, reg *fakeRegistry) *fakeHost {
	h := &fakeHost{
		id: id, registry: reg, here: map[string]*hostv1.HostSandbox{}, receipts: map[string]*sandboxv1.RestoreReceipt{},
		watchers: map[chan *hostv1.HostSandbox]struct{}{},
	}
	h.addr = serve(t, func(s *grpc.Server) { hostv1.RegisterHostServiceServer(s, h) })
	return h
}

// called notes a call and fails it while the host is down.
func (h *fakeHost) called(name, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return status.Error(codes.Unavailable, "connection refused")
	}
	h.calls = append(h.calls, name+" "+id)
	return nil
}

func (h *fakeHost) count(prefix string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, c := range h.calls {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}

func (h *fakeHost) set(do func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	do()
}

// put makes a sandbox what it is now and tells the watchers.
func (h *fakeHost) put(sb *hostv1.HostSandbox) *hostv1.HostSandbox {
	h.mu.Lock()
	defer h.mu.Unlock()
	sb.StateTime = timestamppb.Now()
	h.here[sb.GetSandboxId()] = sb
	for w := range h.watchers {
		w <- proto.CloneOf(sb)
	}
	return proto.CloneOf(sb)
}

func (h *fakeHost) state(id string) sandboxv1.State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.here[id].GetState()
}

func (h *fakeHost) running(id string) bool { return h.state(id) == sandboxv1.State_STATE_RUNNING }

// kill is the death of a VM.
func (h *fakeHost) kill(id, reason string) {
	h.put(&hostv1.HostSandbox{SandboxId: id, State: sandboxv1.State_STATE_FAILED, Reason: reason})
}

func (h *fakeHost) start(id string, kind sandboxv1.StartKind, restoreID, snapshot string) (*hostv1.HostSandbox, *sandboxv1.RestoreReceipt) {
	r := &sandboxv1.RestoreReceipt{SandboxId: id, RestoreId: restoreID, Kind: kind, HostId: h.id, SnapshotId: snapshot}
	h.set(func() { h.receipts[id] = r })
	return h.put(&hostv1.HostSandbox{SandboxId: id, State: sandboxv1.State_STATE_RUNNING, LastActiveTime: timestamppb.Now(), RestoreId: restoreID}), r
}

func (h *fakeHost) StartSandbox(_ context.Context, r *hostv1.StartSandboxRequest) (*hostv1.StartSandboxResponse, error) {
	id := r.GetSpec().GetSandboxId()
	if err := h.called("start", id); err != nil {
		return nil, err
	}
	if h.onStart != nil {
		if err := h.onStart(r); err != nil {
			return nil, err
		}
	}
	sb, receipt := h.start(id, r.GetSpec().GetKind(), r.GetRestoreId(), r.GetSpec().GetSnapshotId())
	h.called("up", id)
	return &hostv1.StartSandboxResponse{Sandbox: sb, Receipt: receipt}, nil
}

func (h *fakeHost) DestroySandbox(_ context.Context, r *hostv1.DestroySandboxRequest) (*hostv1.DestroySandboxResponse, error) {
	if err := h.called("destroy", r.GetSandboxId()); err != nil {
		return nil, err
	}
	if h.onDestroy != nil {
		h.onDestroy(r)
	}
	h.set(func() {
		if here := h.here[r.GetSandboxId()].GetRestoreId(); r.GetRestoreId() == "" || here == r.GetRestoreId() {
			delete(h.here, r.GetSandboxId())
		}
	})
	return &hostv1.DestroySandboxResponse{}, nil
}

// inLife tells the life that a sandbox is in, if it is the one that is meant.
func (h *fakeHost) inLife(id, restoreID string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	life := h.here[id].GetRestoreId()
	if restoreID != "" && life != restoreID {
		return "", apierr.E(codes.FailedPrecondition, "ILLEGAL_STATE", fmt.Sprintf("sandbox %s is no longer in the life that start %s began", id, restoreID))
	}
	return life, nil
}

func (h *fakeHost) PauseSandbox(_ context.Context, r *hostv1.PauseSandboxRequest) (*hostv1.PauseSandboxResponse, error) {
	if err := h.called("pause", r.GetSandboxId()); err != nil {
		return nil, err
	}
	if h.onPause != nil {
		if err := h.onPause(r); err != nil {
			return nil, err
		}
	}
	life, err := h.inLife(r.GetSandboxId(), r.GetRestoreId())
	if err != nil {
		return nil, err
	}
	h.registry.add(r.GetSnapshotId(), "", h.id)
	return &hostv1.PauseSandboxResponse{Sandbox: h.put(&hostv1.HostSandbox{
		SandboxId: r.GetSandboxId(), State: sandboxv1.State_STATE_PAUSED, SnapshotId: r.GetSnapshotId(), RestoreId: life,
	})}, nil
}

func (h *fakeHost) SnapshotSandbox(_ context.Context, r *hostv1.SnapshotSandboxRequest) (*hostv1.SnapshotSandboxResponse, error) {
	if err := h.called("snapshot", r.GetSnapshotId()); err != nil {
		return nil, err
	}
	if h.onSnapshot != nil {
		if err := h.onSnapshot(r); err != nil {
			return nil, err
		}
	}
	if _, err := h.inLife(r.GetSandboxId(), r.GetRestoreId()); err != nil {
		return nil, err
	}
	return &hostv1.SnapshotSandboxResponse{Snapshot: h.registry.add(r.GetSnapshotId(), r.GetName(), h.id)}, nil
}

func (h *fakeHost) ForkSandbox(_ context.Context, r *hostv1.ForkSandboxRequest) (*hostv1.ForkSandboxResponse, error) {
	if err := h.called("fork", r.GetSandboxId()); err != nil {
		return nil, err
	}
	if h.onFork != nil {
		if err := h.onFork(r); err != nil {
			return nil, err
		}
	}
	if _, err := h.inLife(r.GetSandboxId(), r.GetRestoreId()); err != nil {
		return nil, err
	}
	h.registry.add(r.GetSnapshotId(), "", h.id)
	resp := &hostv1.ForkSandboxResponse{Stats: &hostv1.SnapshotStats{StoppedUsec: 1234}}
	for _, id := range r.GetCopyIds() {
		sb, _ := h.start(id, sandboxv1.StartKind_START_KIND_FORK, "rst_of_"+id, r.GetSnapshotId())
		resp.Copies = append(resp.Copies, sb)
	}
	return resp, nil
}

func (h *fakeHost) PingSandbox(_ context.Context, r *hostv1.PingSandboxRequest) (*hostv1.PingSandboxResponse, error) {
	if err := h.called("ping", r.GetSandboxId()); err != nil {
		return nil, err
	}
	if st := h.state(r.GetSandboxId()); st == sandboxv1.State_STATE_PAUSED || st == sandboxv1.State_STATE_PAUSING {
		return nil, status.Errorf(codes.FailedPrecondition, "it is %s", st)
	}
	return &hostv1.PingSandboxResponse{Sandbox: &hostv1.HostSandbox{SandboxId: r.GetSandboxId(), LastActiveTime: timestamppb.Now()}}, nil
}

func (h *fakeHost) list() []*hostv1.HostSandbox {
	var all []*hostv1.HostSandbox
	for _, sb := range h.here {
		all = append(all, proto.CloneOf(sb))
	}
	return all
}

func (h *fakeHost) ListSandboxes(context.Context, *hostv1.ListSandboxesRequest) (*hostv1.ListSandboxesResponse, error) {
	if err := h.called("list", ""); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return &hostv1.ListSandboxesResponse{Sandboxes: h.list(), HostId: h.id}, nil
}

func (h *fakeHost) WatchSandboxes(_ *hostv1.WatchSandboxesRequest, stream grpc.ServerStreamingServer[hostv1.WatchSandboxesResponse]) error {
	if err := h.called("watch", ""); err != nil {
		return err
	}
	changes := make(chan *hostv1.HostSandbox, 4096)
	var present []*hostv1.HostSandbox
	h.set(func() { h.watchers[changes] = struct{}{}; present = h.list() })
	defer h.set(func() { delete(h.watchers, changes) })
	for _, sb := range present {
		if err := stream.Send(&hostv1.WatchSandboxesResponse{Sandbox: sb}); err != nil {
			return err
		}
	}
	if err := stream.Send(&hostv1.WatchSandboxesResponse{Synced: true}); err != nil {
		return err
	}
	for {
		select {
		case sb := <-changes:
			if err := stream.Send(&hostv1.WatchSandboxesResponse{Sandbox: sb}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (h *fakeHost) GetReceipt(_ context.Context, r *hostv1.GetReceiptRequest) (*hostv1.GetReceiptResponse, error) {
	if err := h.called("receipt", r.GetSandboxId()); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return &hostv1.GetReceiptResponse{Receipt: h.receipts[r.GetSandboxId()]}, nil
}

func (h *fakeHost) RemoveSnapshot(_ context.Context, r *hostv1.RemoveSnapshotRequest) (*hostv1.RemoveSnapshotResponse, error) {
	return &hostv1.RemoveSnapshotResponse{}, h.called("remove", r.GetSnapshotId())
}

// fakeScheduler gives its hosts in turn.
type fakeScheduler struct {
	schedulerv1.UnimplementedSchedulerServiceServer
	schedulerv1.UnimplementedHostsServiceServer

	mu       sync.Mutex // guards all below
	hosts    []*fakeHost
	lost     map[string]bool
	heard    *timestamppb.Timestamp // when hosts were last heard of
	cordoned map[string]bool
	unfit    bool // no host has the machine model that is asked for
	blind    bool // it knows nothing of anti-affinity, as a former release
	// placed is called with each placement before it is answered, without the lock; it may be nil.
	placed   func(hostID string)
	turn     int
	places   []*schedulerv1.PlaceRequest
	held     map[string]string // reservation to host
	reserved int
}

func (s *fakeScheduler) Place(_ context.Context, r *schedulerv1.PlaceRequest) (*schedulerv1.PlaceResponse, error) {
	resp, err := s.place(r)
	if err == nil && s.placed != nil {
		s.placed(resp.GetHostId())
	}
	return resp, err
}

func (s *fakeScheduler) place(r *schedulerv1.PlaceRequest) (*schedulerv1.PlaceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places = append(s.places, r)
	if s.unfit && r.GetMachine() != "" {
		return nil, apierr.E(codes.ResourceExhausted, "NO_SUITABLE_HOST", "no host fits: of 2 hosts 2 are without the machine model")
	}
	for range s.hosts {
		h := s.hosts[s.turn%len(s.hosts)]
		s.turn++
		if slices.Contains(r.GetExcludeHostIds(), h.id) || r.GetHostId() != "" && r.GetHostId() != h.id || s.lost[h.id] || s.cordoned[h.id] {
			continue
		}
		// It remembers nothing, as a scheduler that has just started.
		if r.GetAntiAffinity() && !s.blind && slices.Contains(r.GetApartFromHostIds(), h.id) {
			continue
		}
		s.reserved++
		id := fmt.Sprintf("res_%d", s.reserved)
		s.held[id] = h.id
		return &schedulerv1.PlaceResponse{HostId: h.id, Address: h.addr, ReservationId: id}, nil
	}
	return nil, status.Error(codes.ResourceExhausted, "no host has room: asked for 1 vCPU and 512 MiB, free are 0 vCPUs")
}

func (s *fakeScheduler) CordonHost(_ context.Context, r *schedulerv1.CordonHostRequest) (*schedulerv1.CordonHostResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.hosts {
		if h.id == r.GetHostId() {
			s.cordoned[h.id] = r.GetCordoned()
			return &schedulerv1.CordonHostResponse{}, nil
		}
	}
	return nil, status.Error(codes.NotFound, "no host "+r.GetHostId()+" is known")
}

func (s *fakeScheduler) ExplainPlacement(_ context.Context, r *schedulerv1.ExplainPlacementRequest) (*schedulerv1.ExplainPlacementResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &schedulerv1.ExplainPlacementResponse{}
	for _, h := range s.hosts {
		v := &schedulerv1.HostVerdict{HostId: h.id, Fits: r.GetPlace().GetVmm() == "qemu/tcg"}
		if !v.Fits {
			v.Reasons = []string{"has no driver " + r.GetPlace().GetVmm()}
		}
		resp.Verdicts = append(resp.Verdicts, v)
	}
	return resp, nil
}

func (s *fakeScheduler) ReleaseReservation(_ context.Context, r *schedulerv1.ReleaseReservationRequest) (*schedulerv1.ReleaseReservationResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, r.GetReservationId())
	return &schedulerv1.ReleaseReservationResponse{}, nil
}

func (s *fakeScheduler) ListHosts(context.Context, *schedulerv1.ListHostsRequest) (*schedulerv1.ListHostsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &schedulerv1.ListHostsResponse{}
	for _, h := range s.hosts {
		st := schedulerv1.HostState_HOST_STATE_READY
		if s.lost[h.id] {
			st = schedulerv1.HostState_HOST_STATE_LOST
		}
		resp.Hosts = append(resp.Hosts, &schedulerv1.Host{Id: h.id, Address: h.addr, State: st, HeartbeatTime: s.heard})
	}
	return resp, nil
}

// fakeRegistry keeps manifests.
type fakeRegistry struct {
	snapshotv1.UnimplementedRegistryServiceServer
	snapshotv1.UnimplementedSnapshotServiceServer

	mu      sync.Mutex // guards all below
	snaps   map[string]*snapshotv1.GetManifestResponse
	tenants map[string]string
	leases  map[string]bool
	dropped []string
	// durable: what is added from now on is durable at once.
	durable bool
	away    bool // cannot be asked for manifests
}

func newFakeRegistry() *fakeRegistry {
	return &fakeRegistry{snaps: map[string]*snapshotv1.GetManifestResponse{}, tenants: map[string]string{}, leases: map[string]bool{}, durable: true}
}

func (r *fakeRegistry) set(do func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	do()
}

func (r *fakeRegistry) add(id, name, host string) *snapshotv1.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := snapshotv1.SnapshotState_SNAPSHOT_STATE_LOCAL
	if r.durable {
		st = snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE
	}
	snap := &snapshotv1.Snapshot{Id: id, Name: name, State: st, Vcpus: 2, MemoryMb: 1024, DiskMb: 2048, HostId: host}
	if slices.Contains(r.dropped, id) {
		return snap // It is registered no more.
	}
	m := &snapshotv1.Manifest{SnapshotId: id, Vmm: "qemu", Vcpus: 2, MemoryBytes: 1024 << 20, DiskBytes: 2048 << 20}
	r.snaps[id] = &snapshotv1.GetManifestResponse{Snapshot: snap, Manifest: m, HostIds: []string{host}}
	r.tenants[id] = "acme"
	return snap
}

func (r *fakeRegistry) GetManifest(_ context.Context, q *snapshotv1.GetManifestRequest) (*snapshotv1.GetManifestResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return nil, status.Error(codes.Unavailable, "connection refused")
	}
	for id, s := range r.snaps {
		if (id == q.GetSnapshot() || s.GetSnapshot().GetName() == q.GetSnapshot()) && (q.GetTenantId() == "" || q.GetTenantId() == r.tenants[id]) {
			return proto.CloneOf(s), nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no snapshot %q", q.GetSnapshot())
}

// GetUsage counts the tenant's snapshots as 1 MiB each; one with a name is a template.
func (r *fakeRegistry) GetUsage(ctx context.Context, q *snapshotv1.GetUsageRequest) (*snapshotv1.GetUsageResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &snapshotv1.GetUsageResponse{}
	if q.GetTenantId() != incoming(ctx, "covey-tenant") {
		return nil, status.Error(codes.InvalidArgument, "the call is another tenant's")
	}
	for id, s := range r.snaps {
		if r.tenants[id] != q.GetTenantId() {
			continue
		}
		out.StoredBytes += 1 << 20
		out.Snapshots++
		if s.GetSnapshot().GetName() != "" {
			out.TemplateIds = append(out.TemplateIds, id)
		}
	}
	return out, nil
}

func (r *fakeRegistry) RegisterSnapshot(_ context.Context, q *snapshotv1.RegisterSnapshotRequest) (*snapshotv1.RegisterSnapshotResponse, error) {
	return &snapshotv1.RegisterSnapshotResponse{Snapshot: r.add(q.GetManifest().GetSnapshotId(), q.GetName(), q.GetHostId())}, nil
}

func (r *fakeRegistry) CommitSnapshot(_ context.Context, q *snapshotv1.CommitSnapshotRequest) (*snapshotv1.CommitSnapshotResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &snapshotv1.CommitSnapshotResponse{Snapshot: proto.CloneOf(r.snaps[q.GetSnapshotId()].GetSnapshot())}, nil
}

func (r *fakeRegistry) AcquireLease(_ context.Context, q *snapshotv1.AcquireLeaseRequest) (*snapshotv1.AcquireLeaseResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.snaps[q.GetSnapshotId()] == nil {
		return nil, status.Error(codes.NotFound, "no such snapshot")
	}
	r.leases[q.GetHolder()+" "+q.GetSnapshotId()] = true
	return &snapshotv1.AcquireLeaseResponse{}, nil
}

func (r *fakeRegistry) ReleaseLease(_ context.Context, q *snapshotv1.ReleaseLeaseRequest) (*snapshotv1.ReleaseLeaseResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.leases, q.GetHolder()+" "+q.GetSnapshotId())
	return &snapshotv1.ReleaseLeaseResponse{}, nil
}

func (r *fakeRegistry) DropSnapshot(_ context.Context, q *snapshotv1.DropSnapshotRequest) (*snapshotv1.DropSnapshotResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.snaps, q.GetSnapshotId())
	r.dropped = append(r.dropped, q.GetSnapshotId())
	return &snapshotv1.DropSnapshotResponse{}, nil
}

func (r *fakeRegistry) has(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.snaps[id] != nil
}

// eventually waits for what becomes true by others' doing.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(within)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}
