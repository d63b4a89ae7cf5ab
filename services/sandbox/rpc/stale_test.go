package rpc_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

func TestARequestWhoseWorkAnotherOperationEndedIsAnsweredWhenItIsRepeated(t *testing.T) {
	m := newMesh(t)
	r, other := m.replica("one"), m.replica("two")
	asked, goOn := make(chan string, 1), make(chan struct{})
	defer close(goOn)
	slow := func(q *hostv1.StartSandboxRequest) error {
		asked <- q.GetSpec().GetSandboxId()
		<-goOn
		return nil
	}
	m.a.onStart, m.b.onStart = slow, slow
	q := &sandboxv1.CreateSandboxRequest{Template: "tiny", RequestId: "once"}
	created := make(chan error, 1)
	go func() {
		_, err := r.CreateSandbox(as(t, "acme"), q)
		created <- err
	}()
	id := <-asked
	if _, err := other.DeleteSandbox(as(t, "acme"), &sandboxv1.DeleteSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	wantError(t, <-created, codes.Aborted, "CONCURRENT_CHANGE", id)
	for _, r := range []*replica{other, r, other} {
		began := time.Now()
		_, err := r.CreateSandbox(as(t, "acme"), q)
		wantError(t, err, codes.Aborted, "CONCURRENT_CHANGE", id)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the repeated request was answered after %s", took)
		}
	}
}

func TestAPauseThatADeletionOvertakesIsNoSuccessForWhoJoinedIt(t *testing.T) {
	m := newMesh(t)
	r, other := m.replica("one"), m.replica("two")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	host := m.host(sb.GetHostId())
	goOn := make(chan struct{})
	host.set(func() { host.onPause = func(*hostv1.PauseSandboxRequest) error { <-goOn; return nil } })
	var wg sync.WaitGroup
	defer wg.Wait()
	pause := func(r *replica) {
		_, err := r.PauseSandbox(as(t, "acme"), &sandboxv1.PauseSandboxRequest{SandboxId: sb.GetId()})
		wantError(t, err, codes.Aborted, "CONCURRENT_CHANGE")
	}
	wg.Go(func() { pause(r) })
	eventually(t, 5*time.Second, "the pause is under way", func() bool { return host.count("pause") > 0 })
	wg.Go(func() { pause(other) })
	// The deletion's patience with the pause ends first.
	if sb := other.delete(t, sb.GetId()); sb.GetState() != stStopped {
		t.Errorf("deleted: %v", sb)
	}
	close(goOn)
}

func TestWhoAskedForWorkThatAnotherReplicaTookOverGetsItsResult(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	m.replica("two")
	conn, err := pgx.Connect(t.Context(), m.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	goOn := make(chan struct{})
	m.a.onStart = func(*hostv1.StartSandboxRequest) error { <-goOn; return nil }
	m.b.onStart = m.a.onStart
	type answer struct {
		sb  *sandboxv1.Sandbox
		err error
	}
	created := make(chan answer, 1)
	go func() {
		q, err := r.CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "tiny"})
		created <- answer{q.GetSandbox(), err}
	}()
	starts := func() int { return m.a.count("start") + m.b.count("start") }
	eventually(t, 5*time.Second, "it is being started", func() bool { return starts() == 1 })
	eventually(t, 20*time.Second, "it is taken over again and again", func() bool {
		// Whoever has it was too slow to renew his lease.
		if _, err := conn.Exec(t.Context(), "UPDATE sandbox.sandbox SET lease_until = now() - interval '1 hour'"); err != nil {
			t.Error(err)
			return true
		}
		return starts() > 4
	})
	close(goOn)
	a := <-created
	if a.err != nil || a.sb.GetState() != stRunning {
		t.Errorf("who asked got %v, %v", a.sb, a.err)
	}
}
