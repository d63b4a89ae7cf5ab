package rpc_test

import (
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// heard is what a host was told, so that it can be told again late.
type heard struct {
	mu     sync.Mutex // guards all below
	starts map[string]string
	pauses []*hostv1.PauseSandboxRequest
	snaps  []*hostv1.SnapshotSandboxRequest
	forks  []*hostv1.ForkSandboxRequest
}

func listen(h *fakeHost) *heard {
	o := &heard{starts: map[string]string{}}
	note := func(do func()) error {
		o.mu.Lock()
		defer o.mu.Unlock()
		do()
		return nil
	}
	h.set(func() {
		h.onStart = func(r *hostv1.StartSandboxRequest) error {
			return note(func() { o.starts[r.GetSpec().GetSandboxId()] = r.GetRestoreId() })
		}
		h.onPause = func(r *hostv1.PauseSandboxRequest) error { return note(func() { o.pauses = append(o.pauses, r) }) }
		h.onSnapshot = func(r *hostv1.SnapshotSandboxRequest) error { return note(func() { o.snaps = append(o.snaps, r) }) }
		h.onFork = func(r *hostv1.ForkSandboxRequest) error { return note(func() { o.forks = append(o.forks, r) }) }
	})
	return o
}

func TestACommandThatComesLateDoesNothingToALaterLifeOfTheSandbox(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	m.scheduler.hosts = m.scheduler.hosts[:1]
	host := m.a
	o := listen(host)
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	id := sb.GetId()
	if _, err := r.CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: id, Name: "golden"}); err != nil {
		t.Fatal(err)
	}
	forked, err := r.ForkSandbox(as(t, "acme"), &sandboxv1.ForkSandboxRequest{SandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	r.pause(t, id)
	first := o.starts[id]
	for what, life := range map[string]string{"pause": o.pauses[0].GetRestoreId(), "snapshot": o.snaps[0].GetRestoreId(), "fork": o.forks[0].GetRestoreId()} {
		if first == "" || life != first {
			t.Errorf("the %s is of life %q, the start was of %q", what, life, first)
		}
	}
	if _, err := r.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	_, pauseErr := host.PauseSandbox(t.Context(), o.pauses[0])
	_, snapErr := host.SnapshotSandbox(t.Context(), o.snaps[0])
	_, forkErr := host.ForkSandbox(t.Context(), o.forks[0])
	for what, err := range map[string]error{"pause": pauseErr, "snapshot": snapErr, "fork": forkErr} {
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a late %s: %v", what, err)
		}
	}
	if !host.running(id) {
		t.Error("the later life was paused")
	}
	// The later life, and that of a copy, whose start the host has named, are told apart and can be paused.
	r.pause(t, id)
	copied := forked.GetSandboxes()[0].GetId()
	r.pause(t, copied)
	last := o.pauses[len(o.pauses)-2:]
	if last[0].GetRestoreId() == first || last[0].GetRestoreId() != o.starts[id] || last[1].GetRestoreId() != "rst_of_"+copied {
		t.Errorf("paused are lives %q and %q", last[0].GetRestoreId(), last[1].GetRestoreId())
	}
}
