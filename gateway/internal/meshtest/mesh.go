// Package meshtest is a mesh for tests of the gateway and of its clients: real gRPC servers on loopback that implement the services with
// maps in memory, and guests that are directories and processes of this machine.
//
// Two hosts serve the data plane. A sandbox is on the first; Move puts it on the second, where the gateway has to find it.
package meshtest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/relay"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// Keys that the mesh knows from the start.
const (
	AdminKey = "cvy_admin00000000000000000000000000000000000000000"
	ReadKey  = "cvy_read000000000000000000000000000000000000000000"
	OtherKey = "cvy_other00000000000000000000000000000000000000000" // of tenant "other"
)

// Mesh is a running fake.
type Mesh struct {
	sandboxv1.UnimplementedSandboxServiceServer
	sandboxv1.UnimplementedKeyServiceServer
	sandboxv1.UnimplementedLocatorServiceServer
	sandboxv1.UnimplementedOperationsServiceServer
	sandboxv1.UnimplementedTenantServiceServer
	sandboxv1.UnimplementedAuditServiceServer
	snapshotv1.UnimplementedSnapshotServiceServer
	schedulerv1.UnimplementedHostsServiceServer

	// Addr is the address of the control plane.
	Addr string
	// Hosts are the addresses of the data plane.
	Hosts [2]string

	dir    string
	health *health.Server

	mu        sync.Mutex       // guards the rest
	cut       [2]chan struct{} // of hosts that are cut off; closed when they are back
	sandboxes map[string]*owned
	snapshots map[string]*snapshotv1.Snapshot
	keys      map[string]*sandboxv1.Key // by secret
	changed   chan struct{}             // closed and replaced when a sandbox changes
	located   int
	lastMD    metadata.MD
	fail      map[string]error
	failed    map[string]int                   // calls that got an error of fail
	audit     map[string]*sandboxv1.AuditEvent // by uid
	events    []string                         // uids in the order in which they came
}

// owned is a sandbox with its tenant and place.
type owned struct {
	sb     *sandboxv1.Sandbox
	tenant string
	host   int
}

// Start starts a mesh that ends with the test.
func Start(t testing.TB) *Mesh {
	t.Helper()
	m := &Mesh{
		dir: t.TempDir(), sandboxes: map[string]*owned{}, snapshots: map[string]*snapshotv1.Snapshot{}, changed: make(chan struct{}), fail: map[string]error{}, failed: map[string]int{}, audit: map[string]*sandboxv1.AuditEvent{},
		keys: map[string]*sandboxv1.Key{
			AdminKey: {Id: "key_ADMIN", Name: "admin", TenantId: "default", Scopes: []string{"admin", "read", "write"}},
			ReadKey:  {Id: "key_READ", Name: "read", TenantId: "default", Scopes: []string{"read"}},
			OtherKey: {Id: "key_OTHER", Name: "other", TenantId: "other", Scopes: []string{"admin", "read", "write"}},
		},
	}
	m.health = health.NewServer()
	m.Addr = serve(t, m, func(s *grpc.Server) {
		sandboxv1.RegisterSandboxServiceServer(s, m)
		sandboxv1.RegisterKeyServiceServer(s, m)
		sandboxv1.RegisterLocatorServiceServer(s, m)
		sandboxv1.RegisterOperationsServiceServer(s, m)
		sandboxv1.RegisterTenantServiceServer(s, m)
		sandboxv1.RegisterAuditServiceServer(s, m)
		snapshotv1.RegisterSnapshotServiceServer(s, m)
		schedulerv1.RegisterHostsServiceServer(s, m)
		healthpb.RegisterHealthServer(s, m.health)
	})
	for i := range m.Hosts {
		h := &host{mesh: m, index: i, processes: map[string]*process{}}
		t.Cleanup(h.stop)
		m.Hosts[i] = serveOn(t, m, func(l net.Listener) net.Listener { return &cuttable{l, m, i} }, func(s *grpc.Server) {
			guestv1.RegisterProcessServiceServer(s, h)
			guestv1.RegisterFileServiceServer(s, h)
			guestv1.RegisterPortServiceServer(s, h)
			hostv1.RegisterHostServiceServer(s, h)
		})
	}
	return m
}

func serve(t testing.TB, m *Mesh, register func(*grpc.Server)) string {
	return serveOn(t, m, func(l net.Listener) net.Listener { return l }, register)
}

func serveOn(t testing.TB, m *Mesh, wrap func(net.Listener) net.Listener, register func(*grpc.Server)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l = wrap(l)
	s := grpc.NewServer(grpc.MaxRecvMsgSize(relay.MaxMessage), grpc.WaitForHandlers(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := m.note(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(tenant.Incoming(ctx, true), req)
		}))
	register(s)
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Serve(l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		s.Stop()
		done.Wait()
	})
	return l.Addr().String()
}

// note remembers the metadata of a call, and gives the error that Fail has for it.
func (m *Mesh) note(ctx context.Context, method string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if method != sandboxv1.AuditService_WriteAuditEvents_FullMethodName { // It comes in between, from the gateway itself.
		m.lastMD, _ = metadata.FromIncomingContext(ctx)
	}
	err := m.fail[method]
	if err != nil {
		m.failed[method]++
	}
	return err
}

// Metadata is what the last unary call came with.
func (m *Mesh) Metadata() metadata.MD {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lastMD
}

// Fail has a method of the mesh answer err; nil ends that.
func (m *Mesh) Fail(fullMethod string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail[fullMethod] = err
}

// Failed is how often a method has answered an error of Fail.
func (m *Mesh) Failed(fullMethod string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed[fullMethod]
}

// Located is how often the mesh was asked where a sandbox is.
func (m *Mesh) Located() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.located
}

// Move puts a sandbox on the other host.
func (m *Mesh) Move(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sandboxes[id].host ^= 1
}

// SetReady says whether the services of the control plane are healthy.
func (m *Mesh) SetReady(ok bool) {
	st := healthpb.HealthCheckResponse_NOT_SERVING
	if ok {
		st = healthpb.HealthCheckResponse_SERVING
	}
	m.health.SetServingStatus("", st)
}

// Add makes a running sandbox of tenant "default" and returns its id.
func (m *Mesh) Add() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.add(tenant.Default, &sandboxv1.CreateSandboxRequest{Template: "tiny"}).sb.GetId()
}

func (m *Mesh) add(owner string, q *sandboxv1.CreateSandboxRequest) *owned {
	template := q.GetTemplate()
	if template == "" {
		template = "base"
	}
	now := timestamppb.Now()
	o := &owned{tenant: owner, sb: &sandboxv1.Sandbox{
		Id: "sb_" + ulid.Make().String(), State: sandboxv1.State_STATE_RUNNING, Template: template, Vcpus: max(1, q.GetVcpus()),
		MemoryMb: max(512, q.GetMemoryMb()), DiskMb: 512, Metadata: q.GetMetadata(), HostId: "host-a", CreateTime: now, StateTime: now,
		LastActiveTime: now, AutoResume: q.GetAutoResume(), TimeoutSec: q.GetTimeoutSec(), Version: 1,
	}}
	m.sandboxes[o.sb.GetId()] = o
	m.tell()
	return o
}

// tell wakes watchers. mu is held.
func (m *Mesh) tell() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// find finds a sandbox of the caller's. mu is held.
func (m *Mesh) find(ctx context.Context, id string) (*owned, error) {
	o := m.sandboxes[id]
	if o == nil || o.tenant != tenant.From(ctx) {
		return nil, apierr.E(codes.NotFound, "SANDBOX_NOT_FOUND", "there is no sandbox "+id, "sandbox_id", id)
	}
	return o, nil
}

// change finds a sandbox and sets its state.
func (m *Mesh) change(ctx context.Context, id string, to sandboxv1.State) (*sandboxv1.Sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, err := m.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if o.sb.GetState() == sandboxv1.State_STATE_STOPPED && to != sandboxv1.State_STATE_STOPPED {
		return nil, apierr.E(codes.FailedPrecondition, "ILLEGAL_STATE", "sandbox "+id+" is STOPPED", "state", "STOPPED")
	}
	o.sb.State = to
	o.sb.Version++
	m.tell()
	return proto.CloneOf(o.sb), nil
}

// LocateSandbox implements LocatorService.
func (m *Mesh) LocateSandbox(_ context.Context, q *sandboxv1.LocateSandboxRequest) (*sandboxv1.LocateSandboxResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.located++
	o, err := m.find(tenant.With(context.Background(), q.GetTenantId()), q.GetSandboxId())
	if err != nil {
		return nil, err
	}
	if o.sb.GetState() == sandboxv1.State_STATE_PAUSED && q.GetWake() && o.sb.GetAutoResume() {
		o.sb.State = sandboxv1.State_STATE_RUNNING
	}
	if o.sb.GetState() != sandboxv1.State_STATE_RUNNING {
		return nil, apierr.E(codes.FailedPrecondition, "NOT_RUNNING", fmt.Sprintf("sandbox %s is %s", q.GetSandboxId(), o.sb.GetState()))
	}
	return &sandboxv1.LocateSandboxResponse{HostId: o.sb.GetHostId(), Address: m.Hosts[o.host]}, nil
}

// Authenticate implements LocatorService.
func (m *Mesh) Authenticate(_ context.Context, q *sandboxv1.AuthenticateRequest) (*sandboxv1.AuthenticateResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.keys[q.GetApiKey()]
	if k == nil || k.GetRevokeTime() != nil {
		return nil, apierr.E(codes.Unauthenticated, "INVALID_API_KEY", "the API key is unknown or was revoked")
	}
	return &sandboxv1.AuthenticateResponse{TenantId: k.GetTenantId(), KeyId: k.GetId(), Scopes: slices.Clone(k.GetScopes())}, nil
}
