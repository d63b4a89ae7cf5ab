package rpc_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/pgtest"
	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/peers"
	"github.com/coveyhq/covey/services/sandbox/postgres"
	"github.com/coveyhq/covey/services/sandbox/rpc"
)

func TestMain(m *testing.M) {
	if dsn := os.Getenv(childDSN); dsn != "" {
		fmt.Fprintln(os.Stderr, serveChild(dsn, os.Getenv(childPeers)))
		os.Exit(1)
	}
	os.Exit(pgtest.MainWithoutLeaks(m))
}

// testTiming makes the tests fast; the promises in them are of order, not of these times. Those at whose end the service does something else are out of the reach
// of a busy machine; a test that is about such an end shortens them with timing.
var testTiming = sandbox.Timing{
	Lease: patience, Reconcile: 150 * time.Millisecond, UnknownGrace: 300 * time.Millisecond,
	HostLost: 400 * time.Millisecond, DeleteWait: patience, Unreachable: patience,
	ExpireGrace: time.Millisecond, Durable: patience, Placing: 100 * time.Millisecond,
}

// patience is how long a test waits for what must come, on a machine that has more to do than it can.
const patience = time.Minute

// timing changes the times of the replicas that are made from now on in the test.
func timing(t testing.TB, change func(*sandbox.Timing)) {
	old := testTiming
	t.Cleanup(func() { testTiming = old })
	change(&testTiming)
}

// shortLease makes leases that end soon, where nobody renews them.
func shortLease(w *sandbox.Timing) { w.Lease = 600 * time.Millisecond }

// mesh is a database and fakes of what sandboxd speaks to, all over real gRPC on loopback.
type mesh struct {
	t         testing.TB
	dsn       string
	scheduler *fakeScheduler
	registry  *fakeRegistry
	a, b      *fakeHost
	dial      func(string) (*grpc.ClientConn, error)
	peersAddr string
	peers     *grpc.ClientConn
}

func newMesh(t testing.TB) *mesh {
	t.Helper()
	m := &mesh{t: t, dsn: pgtest.Database(t), registry: newFakeRegistry()}
	m.scheduler = &fakeScheduler{lost: map[string]bool{}, cordoned: map[string]bool{}, held: map[string]string{}}
	m.a, m.b = newFakeHost(t, "host-a", m.registry), newFakeHost(t, "host-b", m.registry)
	m.scheduler.hosts = []*fakeHost{m.a, m.b}
	m.dial = pooled(t)
	var err error
	m.peersAddr = serve(t, func(s *grpc.Server) {
		schedulerv1.RegisterSchedulerServiceServer(s, m.scheduler)
		schedulerv1.RegisterHostsServiceServer(s, m.scheduler)
		snapshotv1.RegisterRegistryServiceServer(s, m.registry)
		snapshotv1.RegisterSnapshotServiceServer(s, m.registry)
	})
	m.peers, err = m.dial(m.peersAddr)
	if err != nil {
		t.Fatal(err)
	}
	if err := postgres.Migrate(t.Context(), m.dsn); err != nil {
		t.Fatal(err)
	}
	return m
}

// pooled dials each address once and closes all at the test's end.
func pooled(t testing.TB) func(string) (*grpc.ClientConn, error) {
	var mu sync.Mutex
	conns := map[string]*grpc.ClientConn{}
	t.Cleanup(func() {
		for _, c := range conns {
			c.Close()
		}
	})
	return func(addr string) (*grpc.ClientConn, error) {
		mu.Lock()
		defer mu.Unlock()
		if conns[addr] == nil {
			c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return nil, err
			}
			conns[addr] = c
		}
		return conns[addr], nil
	}
}

// replica is one sandboxd.
type replica struct {
	sandboxv1.SandboxServiceClient
	locate  sandboxv1.LocatorServiceClient
	keys    sandboxv1.KeyServiceClient
	tenants sandboxv1.TenantServiceClient
	audit   sandboxv1.AuditServiceClient
	ops     sandboxv1.OperationsServiceClient
	store   *postgres.Store
	stop    func()
}

func (m *mesh) store(owner string, lease time.Duration) *postgres.Store {
	m.t.Helper()
	s, err := postgres.Open(m.t.Context(), postgres.Config{DSN: m.dsn, MaxConns: 8}, owner, lease, slog.New(slog.DiscardHandler))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(s.Close)
	return s
}

func (m *mesh) replica(owner string) *replica {
	m.t.Helper()
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(m.t.Output(), nil)).With("replica", owner)
	}
	store := m.store(owner, testTiming.Lease)
	svc := newService(store, m.dial, m.peers, owner, log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); svc.Run(ctx) }()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	m.t.Cleanup(stop)
	r := m.client(serve(m.t, func(s *grpc.Server) { register(s, svc, store, log) }))
	r.store, r.stop = store, stop
	return r
}

// client calls a replica.
func (m *mesh) client(addr string) *replica {
	m.t.Helper()
	conn, err := m.dial(addr)
	if err != nil {
		m.t.Fatal(err)
	}
	return &replica{
		SandboxServiceClient: sandboxv1.NewSandboxServiceClient(conn), locate: sandboxv1.NewLocatorServiceClient(conn),
		keys: sandboxv1.NewKeyServiceClient(conn), tenants: sandboxv1.NewTenantServiceClient(conn), audit: sandboxv1.NewAuditServiceClient(conn), ops: sandboxv1.NewOperationsServiceClient(conn),
	}
}

func newService(store *postgres.Store, dial peers.Dial, mesh *grpc.ClientConn, owner string, log *slog.Logger) *sandbox.Service {
	sched := peers.NewScheduler(mesh)
	return sandbox.New(sandbox.Config{
		Store: store, Hosts: peers.NewHosts(dial, sched), Scheduler: sched, Snapshots: peers.NewSnapshots(mesh, outgoing),
		Images: []sandbox.Image{{Name: "base", DiskMB: 8192}, {Name: "tiny", DiskMB: 512}}, Log: log, Owner: owner, Timing: testTiming,
	})
}

func register(s *grpc.Server, svc *sandbox.Service, store *postgres.Store, log *slog.Logger) {
	rpc.Register(s, rpc.Config{
		Service: svc, Keys: sandbox.NewKeys(store), Log: log, Audit: store,
		KeyID:  func(ctx context.Context) string { return incoming(ctx, "covey-key-id") },
		Tenant: func(ctx context.Context) string { return incoming(ctx, "covey-tenant") },
		Admin:  func(ctx context.Context) bool { return incoming(ctx, "covey-scopes") == "admin" },
	})
}

// outgoing is a context in which a call is a tenant's.
func outgoing(ctx context.Context, tenant string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "covey-tenant", tenant)
}

func incoming(ctx context.Context, key string) string {
	return strings.Join(metadata.ValueFromIncomingContext(ctx, key), "")
}

// as is a context of a tenant, with a deadline so that a test that hangs says where.
func as(t testing.TB, tenant string) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "covey-tenant", tenant)
}

func (m *mesh) host(id string) *fakeHost {
	m.t.Helper()
	for _, h := range []*fakeHost{m.a, m.b} {
		if h.id == id {
			return h
		}
	}
	m.t.Fatalf("no host %q", id)
	return nil
}

// create makes a running sandbox of tenant acme.
func (r *replica) create(t testing.TB, q *sandboxv1.CreateSandboxRequest) *sandboxv1.Sandbox {
	t.Helper()
	resp, err := r.CreateSandbox(as(t, "acme"), q)
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetSandbox().GetState() != sandboxv1.State_STATE_RUNNING {
		t.Fatalf("created sandbox is %s", resp.GetSandbox().GetState())
	}
	return resp.GetSandbox()
}

func (r *replica) get(t testing.TB, id string) *sandboxv1.Sandbox {
	t.Helper()
	resp, err := r.GetSandbox(as(t, "acme"), &sandboxv1.GetSandboxRequest{SandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetSandbox()
}

func (r *replica) pause(t testing.TB, id string) *sandboxv1.Sandbox {
	t.Helper()
	resp, err := r.PauseSandbox(as(t, "acme"), &sandboxv1.PauseSandboxRequest{SandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetSandbox()
}

// becomes waits for a state and returns the sandbox in it.
func (r *replica) becomes(t testing.TB, within time.Duration, id string, want sandboxv1.State) *sandboxv1.Sandbox {
	t.Helper()
	var sb *sandboxv1.Sandbox
	eventually(t, within, fmt.Sprintf("%s becomes %s", id, want), func() bool {
		sb = r.get(t, id)
		return sb.GetState() == want
	})
	return sb
}

// wantError checks code and reason, and that the message has all of the words.
func wantError(t testing.TB, err error, code codes.Code, reason string, words ...string) {
	t.Helper()
	st := status.Convert(err)
	var info *errdetails.ErrorInfo
	for _, d := range st.Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok {
			info = i
		}
	}
	if st.Code() != code || info.GetReason() != reason || info.GetDomain() != "covey.dev" {
		t.Fatalf("error is %s %s %q, want %s %s", st.Code(), info.GetReason(), st.Message(), code, reason)
	}
	if i := slices.IndexFunc(words, func(w string) bool { return !strings.Contains(st.Message(), w) }); i >= 0 {
		t.Fatalf("error %q does not say %q", st.Message(), words[i])
	}
}
