package rpc_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis/pgtest"
	"github.com/coveyhq/covey/services/sandbox/postgres"
)

// A test binary with these in its environment is a replica, for tests that kill one.
const (
	childDSN   = "COVEY_TEST_REPLICA_DSN"
	childPeers = "COVEY_TEST_REPLICA_PEERS"
)

// serveChild is a replica in a process of its own. It prints its address and ends only by being killed. The end of its leases is what tests wait for then.
func serveChild(dsn, peersAddr string) error {
	shortLease(&testTiming)
	ctx, log := context.Background(), slog.New(slog.NewTextHandler(os.Stderr, nil))
	dial := func(addr string) (*grpc.ClientConn, error) {
		return grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	mesh, err := dial(peersAddr)
	if err != nil {
		return err
	}
	owner := fmt.Sprintf("child-%d", os.Getpid())
	store, err := postgres.Open(ctx, postgres.Config{DSN: dsn, MaxConns: 8}, owner, testTiming.Lease, log)
	if err != nil {
		return err
	}
	svc := newService(store, dial, mesh, owner, log)
	go svc.Run(ctx)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	register(s, svc, store, log)
	fmt.Println(lis.Addr())
	return s.Serve(lis)
}

// child starts a replica in a process of its own, which kill ends as kill -9 does.
func (m *mesh) child() (r *replica, kill func()) {
	m.t.Helper()
	addr, kill := pgtest.Child(m.t, childDSN+"="+m.dsn, childPeers+"="+m.peersAddr)
	return m.client(addr), kill
}

func TestAReplicaKilledInTheMiddleOfACreationLosesNothing(t *testing.T) {
	m := newMesh(t)
	r, kill := m.child()
	asked, goOn := make(chan string, 8), make(chan struct{})
	slow := func(q *hostv1.StartSandboxRequest) error {
		asked <- q.GetSpec().GetSandboxId()
		<-goOn
		return nil
	}
	m.a.onStart, m.b.onStart = slow, slow
	q := &sandboxv1.CreateSandboxRequest{Template: "tiny", RequestId: "survives"}
	failed := make(chan error, 1)
	go func() {
		_, err := r.CreateSandbox(as(t, "acme"), q)
		failed <- err
	}()
	id := <-asked
	kill()
	if err := <-failed; err == nil {
		t.Fatal("a killed replica answered")
	}
	other := m.replica("other")
	// The same request, repeated to another replica while nobody does its work, is answered once the lease has ended.
	answered := make(chan *sandboxv1.CreateSandboxResponse, 1)
	go func() {
		resp, err := other.CreateSandbox(as(t, "acme"), q)
		if err != nil {
			t.Error(err)
		}
		answered <- resp
	}()
	if again := <-asked; again != id {
		t.Fatalf("took up %s", again)
	}
	close(goOn)
	if resp := <-answered; resp.GetSandbox().GetId() != id || resp.GetSandbox().GetState() != stRunning {
		t.Fatalf("answered %v", resp)
	}
	if sb := other.get(t, id); !m.host(sb.GetHostId()).running(id) {
		t.Fatal("no host runs it")
	}
}

func TestASnapshotRequestIsContinuedAfterItsReplicaWasKilled(t *testing.T) {
	m := newMesh(t)
	r, kill := m.child()
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	host := m.host(sb.GetHostId())
	asked, goOn := make(chan struct{}), make(chan struct{})
	first := true
	host.set(func() {
		host.onSnapshot = func(*hostv1.SnapshotSandboxRequest) error {
			if first {
				first = false
				close(asked)
				<-goOn
			}
			return nil
		}
	})
	defer close(goOn)
	q := &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "golden", RequestId: "s"}
	failed := make(chan error, 1)
	go func() {
		_, err := r.CreateSnapshot(as(t, "acme"), q)
		failed <- err
	}()
	<-asked
	kill()
	<-failed
	began := time.Now()
	resp, err := m.replica("other").CreateSnapshot(as(t, "acme"), q)
	if err != nil || resp.GetSnapshot().GetName() != "golden" {
		t.Fatalf("repeated: %v, %v after %s", resp, err, time.Since(began))
	}
	host.mu.Lock()
	defer host.mu.Unlock()
	var ids []string
	for _, c := range host.calls {
		if id, is := strings.CutPrefix(c, "snapshot "); is {
			ids = append(ids, id)
		}
	}
	if len(ids) != 2 || ids[0] != ids[1] || ids[0] != resp.GetSnapshot().GetId() {
		t.Fatalf("snapshots asked for: %v, answered %s", ids, resp.GetSnapshot().GetId())
	}
}

// dueNow makes the chores that would be due later due.
func (m *mesh) dueNow() {
	m.t.Helper()
	m.exec("UPDATE sandbox.chore SET not_before = now()")
}

// exec runs a statement and tells how many rows it is about.
func (m *mesh) exec(sql string) int64 {
	m.t.Helper()
	db, err := pgx.Connect(m.t.Context(), m.dsn)
	if err != nil {
		m.t.Fatal(err)
	}
	defer db.Close(context.WithoutCancel(m.t.Context()))
	tag, err := db.Exec(m.t.Context(), sql)
	if err != nil {
		m.t.Fatal(err)
	}
	return tag.RowsAffected()
}

func TestATemplateThatNobodyCanAskForAgainIsDroppedAfterItsReplicaWasKilled(t *testing.T) {
	m := newMesh(t)
	r, kill := m.child()
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	host := m.host(sb.GetHostId())
	made, goOn := make(chan string, 1), make(chan struct{})
	host.set(func() {
		host.onSnapshot = func(q *hostv1.SnapshotSandboxRequest) error {
			m.registry.add(q.GetSnapshotId(), q.GetName(), host.id)
			made <- q.GetSnapshotId()
			<-goOn
			return nil
		}
	})
	defer close(goOn)
	failed := make(chan error, 1)
	go func() {
		_, err := r.CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "golden"})
		failed <- err
	}()
	id := <-made
	kill()
	if err := <-failed; err == nil {
		t.Fatal("a killed replica answered")
	}
	m.replica("other")
	if n := m.exec("SELECT 1 FROM sandbox.chore WHERE not_before > now() + interval '5 minutes'"); n != 1 || !m.registry.has(id) {
		t.Fatalf("%d chores wait for the end of its making", n)
	}
	m.dueNow()
	eventually(t, patience, "the template is dropped", func() bool { return !m.registry.has(id) })
	eventually(t, patience, "its host is told", func() bool { return host.count("remove "+id) > 0 })
}

func TestATemplateThatWasMadeStaysHoweverLongItTakesToSaySo(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	paused := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	r.pause(t, paused.GetId())
	for name, source := range map[string]string{"running": sb.GetId(), "paused": paused.GetId()} {
		resp, err := r.CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: source, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if n := m.exec("SELECT 1 FROM sandbox.chore WHERE kind = 'drop-template'"); n != 0 || !m.registry.has(resp.GetSnapshot().GetId()) {
			t.Errorf("of a %s sandbox: %d chores would drop it", name, n)
		}
	}
	// One that is being dropped already is not answered as made.
	host := m.host(sb.GetHostId())
	ids, goOn := make(chan string, 1), make(chan struct{})
	host.set(func() {
		host.onSnapshot = func(q *hostv1.SnapshotSandboxRequest) error {
			m.registry.add(q.GetSnapshotId(), q.GetName(), host.id)
			ids <- q.GetSnapshotId()
			<-goOn
			return nil
		}
	})
	answered := make(chan error, 1)
	go func() {
		_, err := r.CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "late"})
		answered <- err
	}()
	id := <-ids
	defer close(goOn)
	m.dueNow()
	eventually(t, patience, "it is dropped", func() bool { return !m.registry.has(id) })
	goOn <- struct{}{}
	if err := <-answered; err == nil {
		t.Error("it was answered as made")
	}
	eventually(t, patience, "no chore is left", func() bool { return m.exec("SELECT 1 FROM sandbox.chore WHERE kind = 'drop-template'") == 0 })
	if m.registry.has(id) {
		t.Error("it is there though it was not answered as made")
	}
}
