package rpc_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

func TestATemplateWhoseMakingFailedIsDroppedThoughItsHostHadRegisteredIt(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	for _, requestID := range []string{"", "s"} {
		sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
		host := m.host(sb.GetHostId())
		made := make(chan string, 1)
		host.set(func() {
			host.onSnapshot = func(q *hostv1.SnapshotSandboxRequest) error {
				m.registry.add(q.GetSnapshotId(), q.GetName(), host.id)
				// Somebody finds it before it is dropped.
				if _, err := r.CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: q.GetName()}); err != nil {
					t.Error(err)
				}
				made <- q.GetSnapshotId()
				return status.Error(codes.Internal, "the answer was lost")
			}
		})
		q := &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "golden", RequestId: requestID}
		if _, err := r.CreateSnapshot(as(t, "acme"), q); err == nil {
			t.Fatal("it was made")
		}
		id := <-made
		eventually(t, patience, "the template is dropped", func() bool { return !m.registry.has(id) })
		eventually(t, patience, "its host is told", func() bool { return host.count("remove "+id) > 0 })
		host.set(func() { host.onSnapshot = nil })
		q.RequestId = ""
		resp, err := r.CreateSnapshot(as(t, "acme"), q)
		if err != nil {
			t.Fatalf("the name is not free again: %v", err)
		}
		m.registry.set(func() { delete(m.registry.snaps, resp.GetSnapshot().GetId()) })
	}
}

func TestADropThatFailsIsRepeatedUntilItIsDone(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	host := m.host(sb.GetHostId())
	made := make(chan string, 1)
	host.set(func() {
		host.onSnapshot = func(q *hostv1.SnapshotSandboxRequest) error {
			m.registry.add(q.GetSnapshotId(), q.GetName(), host.id)
			host.set(func() { host.down = true })
			made <- q.GetSnapshotId()
			return status.Error(codes.Internal, "the answer was lost")
		}
	})
	if _, err := r.CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "golden"}); err == nil {
		t.Fatal("it was made")
	}
	id := <-made
	eventually(t, patience, "the template is dropped", func() bool { return !m.registry.has(id) })
	host.set(func() { host.down = false })
	eventually(t, patience, "its host is told when it is back", func() bool { return host.count("remove "+id) > 0 })
}
