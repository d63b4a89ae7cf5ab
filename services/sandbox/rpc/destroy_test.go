package rpc_test

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/sandbox"
)

// late makes a host do what it is told to destroy only after the sandbox has begun another life there.
func late(h *fakeHost, id string) (told chan *hostv1.DestroySandboxRequest) {
	told = make(chan *hostv1.DestroySandboxRequest, 8)
	h.set(func() {
		h.onDestroy = func(r *hostv1.DestroySandboxRequest) {
			if r.GetSandboxId() == id {
				h.start(id, sandboxv1.StartKind_START_KIND_RESUME, "rst_next", "snap_p")
				told <- r
			}
		}
	})
	return told
}

func TestADestroyThatComesLateDoesNotEndALaterLifeOfTheSandbox(t *testing.T) {
	m := newMesh(t)
	stray := "sb_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	m.a.start(stray, sandboxv1.StartKind_START_KIND_SPAWN, "rst_first", "")
	left := "sb_01ARZ3NDEKTSV4RRFFQ69G5FAW"
	m.b.start(left, sandboxv1.StartKind_START_KIND_SPAWN, "rst_first", "")
	strayTold, leftTold := late(m.a, stray), late(m.b, left)
	if _, err := m.store("test", time.Minute).Apply(t.Context(), sandbox.Change{Chores: []sandbox.Chore{{Kind: sandbox.DestroyVM, SandboxID: left, HostID: "host-b"}}}); err != nil {
		t.Fatal(err)
	}
	m.replica("one")
	for _, c := range []struct {
		who  string
		host *fakeHost
		id   string
		told chan *hostv1.DestroySandboxRequest
	}{{"the comparison of a host", m.a, stray, strayTold}, {"a chore", m.b, left, leftTold}} {
		r := <-c.told
		if r.GetRestoreId() != "rst_first" {
			t.Errorf("%s asks for the end of %q, which it has not seen", c.who, r.GetRestoreId())
		}
	}
}

func TestAStartThatFailedIsUndoneWithoutWhatWasThereBefore(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	paused := r.pause(t, sb.GetId())
	host := m.host(paused.GetHostId())
	asked := make(chan string, 8)
	host.set(func() {
		host.onStart = func(q *hostv1.StartSandboxRequest) error {
			asked <- q.GetRestoreId()
			return status.Error(codes.Internal, "it could not be started")
		}
	})
	if _, err := r.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: sb.GetId(), HostId: host.id}); err == nil {
		t.Fatal("it was started")
	}
	if id := <-asked; id == "" || host.count("destroy "+sb.GetId()) == 0 {
		t.Fatalf("start %q was not undone", id)
	}
	if host.state(sb.GetId()) != stPaused {
		t.Errorf("what the host knows of the life before is gone")
	}
}
