package rpc_test

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

func TestASandboxThatItsHostHasJustPausedIsWokenBeforeTheDatabaseKnows(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", AutoResume: true, TimeoutSec: 1})
	host := m.host(sb.GetHostId())
	become := func(st sandboxv1.State, snapshot string) {
		host.set(func() { // Nobody who watches is told.
			host.here[sb.GetId()] = &hostv1.HostSandbox{SandboxId: sb.GetId(), State: st, SnapshotId: snapshot, AutoPaused: true, Reason: "inactive", StateTime: timestamppb.Now()}
		})
	}
	become(sandboxv1.State_STATE_PAUSING, "")
	saved := time.AfterFunc(300*time.Millisecond, func() {
		m.registry.add("snap_timer", "", host.id)
		become(sandboxv1.State_STATE_PAUSED, "snap_timer")
	})
	defer saved.Stop()
	at, err := r.locate.LocateSandbox(as(t, "acme"), &sandboxv1.LocateSandboxRequest{SandboxId: sb.GetId(), Wake: true})
	if err != nil {
		t.Fatal(err)
	}
	// One that must not be woken is said to be paused, and not to be missing.
	other := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", TimeoutSec: 1})
	paused := m.host(other.GetHostId())
	m.registry.add("snap_other", "", paused.id)
	paused.set(func() {
		paused.here[other.GetId()] = &hostv1.HostSandbox{SandboxId: other.GetId(), State: sandboxv1.State_STATE_PAUSED, SnapshotId: "snap_other", AutoPaused: true}
	})
	_, err = r.locate.LocateSandbox(as(t, "acme"), &sandboxv1.LocateSandboxRequest{SandboxId: other.GetId(), Wake: true})
	wantError(t, err, codes.FailedPrecondition, "SANDBOX_NOT_RUNNING", "PAUSED", "resume it first")
	now := r.get(t, sb.GetId())
	if now.GetState() != stRunning || now.GetHostId() != at.GetHostId() || !m.host(at.GetHostId()).running(sb.GetId()) || m.host(at.GetHostId()).count("start "+sb.GetId()) == 0 {
		t.Errorf("located at %v; it is %v", at, now)
	}
}
