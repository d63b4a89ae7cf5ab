package rpc_test

import (
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/sandbox"
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
		if took := time.Since(began); took > patience { // Without an answer it waits for the caller's end.
			t.Errorf("the repeated request was answered after %s", took)
		}
	}
}

func TestAPauseThatADeletionOvertakesIsNoSuccessForWhoJoinedIt(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	timing(t, func(w *sandbox.Timing) { w.DeleteWait = 3 * time.Second })
	other := m.replica("two")
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
	eventually(t, patience, "the pause is under way", func() bool { return host.count("pause") > 0 })
	wg.Go(func() { pause(other) })
	eventually(t, patience, "another pause has come", func() bool { return m.exec("SELECT 1 FROM sandbox.audit WHERE method = 'PauseSandbox'") == 2 })
	// The deletion's patience with the pause ends first.
	if sb := other.delete(t, sb.GetId()); sb.GetState() != stStopped {
		t.Errorf("deleted: %v", sb)
	}
	close(goOn)
}

// overtaken has whoever does a replica's work lose it, again and again, to another which was not too slow to renew its lease, until a host was asked often
// enough; then the hosts go on.
func (m *mesh) overtaken(call string, ask func()) {
	m.t.Helper()
	goOn := make(chan struct{})
	for _, h := range []*fakeHost{m.a, m.b} {
		h.set(func() {
			h.onStart = func(*hostv1.StartSandboxRequest) error { <-goOn; return nil }
			h.onFork = func(*hostv1.ForkSandboxRequest) error { <-goOn; return nil }
		})
	}
	before := m.a.count(call) + m.b.count(call)
	asked := func() int { return m.a.count(call) + m.b.count(call) - before }
	var asking sync.WaitGroup
	asking.Go(ask)
	eventually(m.t, patience, "a host is asked", func() bool { return asked() > 0 })
	eventually(m.t, patience, "it is taken over again and again", func() bool {
		m.exec("UPDATE sandbox.sandbox SET lease_until = now() - interval '1 hour' WHERE lease_until IS NOT NULL")
		return asked() > 8
	})
	close(goOn)
	asking.Wait()
}

func TestWhoAskedForWorkThatAnotherReplicaTookOverGetsItsResult(t *testing.T) {
	for _, paused := range []bool{false, true} {
		m := newMesh(t)
		timing(t, shortLease) // For the one that has lost it to find that out soon.
		r := m.replica("one")
		m.replica("two")
		source := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
		call := "fork"
		if paused {
			r.pause(t, source.GetId())
			call = "start"
		} else {
			m.overtaken("start", func() {
				q, err := r.CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "tiny"})
				if err != nil || q.GetSandbox().GetState() != stRunning {
					t.Errorf("who asked for a sandbox got %v, %v", q, err)
				}
			})
		}
		m.overtaken(call, func() {
			q, err := r.ForkSandbox(as(t, "acme"), &sandboxv1.ForkSandboxRequest{SandboxId: source.GetId(), Count: 2, RequestId: "fork"})
			if err != nil || len(q.GetSandboxes()) != 2 || paused != (q.GetSourceStoppedUsec() == 0) {
				t.Errorf("who asked for copies, of a paused one %v, got %v, %v", paused, q, err)
			}
			for _, sb := range q.GetSandboxes() {
				if now := r.get(t, sb.GetId()); now.GetState() != stRunning || !m.host(now.GetHostId()).running(sb.GetId()) {
					t.Errorf("a copy is %v", now)
				}
			}
		})
	}
}
