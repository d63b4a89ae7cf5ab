package rpc_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/sandbox"
)

// drain drains a host to the end and returns what happened.
func (r *replica) drain(t testing.TB, ctx context.Context, host string) ([]*sandboxv1.DrainHostResponse, error) {
	t.Helper()
	stream, err := r.ops.DrainHost(ctx, &sandboxv1.DrainHostRequest{HostId: host})
	if err != nil {
		t.Fatal(err)
	}
	var all []*sandboxv1.DrainHostResponse
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, m)
	}
}

// of is what happened to one sandbox, in order.
func of(all []*sandboxv1.DrainHostResponse, id string) string {
	var steps []string
	for _, m := range all {
		if m.GetSandboxId() == id {
			steps = append(steps, strings.TrimPrefix(m.GetStep().String(), "DRAIN_STEP_"))
		}
	}
	return strings.Join(steps, " ")
}

// onHost makes n sandboxes on a host of the mesh; the other one is cordoned meanwhile.
func (m *mesh) onHost(r *replica, host string, n int) []*sandboxv1.Sandbox {
	m.t.Helper()
	other := map[string]string{"host-a": "host-b", "host-b": "host-a"}[host]
	m.cordon(other, true)
	defer m.cordon(other, false)
	var all []*sandboxv1.Sandbox
	for range n {
		all = append(all, r.create(m.t, &sandboxv1.CreateSandboxRequest{}))
	}
	return all
}

func (m *mesh) cordon(host string, is bool) {
	m.scheduler.mu.Lock()
	defer m.scheduler.mu.Unlock()
	m.scheduler.cordoned[host] = is
}

func TestADrainMovesWhatRunsAndLeavesWhatWasPausedByRequest(t *testing.T) {
	m := newMesh(t)
	r := m.replica("r1")
	all := m.onHost(r, "host-a", 6)
	elsewhere := m.onHost(r, "host-b", 1)[0]
	paused, dead := all[4], all[5]
	r.pause(t, paused.GetId())
	m.a.kill(dead.GetId(), "the VMM was killed by signal 9")
	r.becomes(t, patience, dead.GetId(), sandboxv1.State_STATE_FAILED)
	r.becomesDurable(t, paused.GetId())

	events, err := r.drain(t, as(t, "acme"), "host-a")
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range all[:4] {
		if got := of(events, sb.GetId()); got != "PAUSING PAUSED DURABLE RESUMED" && got != "PAUSING PAUSED RESUMED" {
			t.Errorf("%s: %s", sb.GetId(), got)
		}
		if now := r.get(t, sb.GetId()); now.GetState() != sandboxv1.State_STATE_RUNNING || now.GetHostId() != "host-b" || !m.b.running(sb.GetId()) {
			t.Errorf("%s is %s on %s", sb.GetId(), now.GetState(), now.GetHostId())
		}
	}
	if got := r.get(t, paused.GetId()); got.GetState() != sandboxv1.State_STATE_PAUSED {
		t.Errorf("what was paused by request is %s", got.GetState())
	}
	if got := of(events, elsewhere.GetId()) + of(events, dead.GetId()); got != "" {
		t.Errorf("of others it says %s", got)
	}
	last := events[len(events)-1]
	if last.GetStep() != sandboxv1.DrainStep_DRAIN_STEP_DONE || last.GetRemaining() != 0 || last.GetTotal() != 4 || events[0].GetTotal() != 4 {
		t.Errorf("it begins with %v and ends with %v", events[0], last)
	}
	again, err := r.drain(t, as(t, "acme"), "host-a")
	if err != nil || len(again) != 2 {
		t.Errorf("a second drain does %v, %v", again, err)
	}
}

// A placement was answered before the cordon, and comes to be known while the host looks empty.
func TestADrainMovesWhatWasPlacedJustBeforeTheCordonToo(t *testing.T) {
	m := newMesh(t)
	timing(t, func(w *sandbox.Timing) { w.Placing = 5 * time.Second })
	r := m.replica("r1")
	answered, goOn := make(chan struct{}), make(chan struct{})
	m.cordon("host-b", true)
	m.scheduler.placed = func(host string) {
		if host == "host-a" {
			close(answered)
			<-goOn
		}
	}
	var sb *sandboxv1.Sandbox
	var made sync.WaitGroup
	made.Go(func() { sb = r.create(t, &sandboxv1.CreateSandboxRequest{}) })
	<-answered
	m.cordon("host-b", false)
	stream, err := r.ops.DrainHost(as(t, "acme"), &sandboxv1.DrainHostRequest{HostId: "host-a"})
	if err != nil {
		t.Fatal(err)
	}
	for first := true; ; first = false {
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if first {
			close(goOn)
		}
		if e.GetStep() == sandboxv1.DrainStep_DRAIN_STEP_DONE {
			break
		}
	}
	made.Wait()
	if now := r.get(t, sb.GetId()); now.GetState() != sandboxv1.State_STATE_RUNNING || now.GetHostId() != "host-b" {
		t.Errorf("the host is drained, and a sandbox is %s on %s", now.GetState(), now.GetHostId())
	}
}

// becomesDurable waits until the service has noted that a pause is in the registry.
func (r *replica) becomesDurable(t testing.TB, id string) {
	t.Helper()
	eventually(t, patience, id+" is durable", func() bool { return r.get(t, id).GetDurable() })
}

func TestADrainResumesNothingElsewhereBeforeItsStateIsDurable(t *testing.T) {
	m := newMesh(t)
	timing(t, func(w *sandbox.Timing) { w.Durable = time.Second })
	timing(t, shortLease)
	r := m.replica("r1")
	sb := m.onHost(r, "host-a", 1)[0]
	m.registry.set(func() { m.registry.durable = false })
	events, err := r.drain(t, as(t, "acme"), "host-a")
	if err != nil {
		t.Fatal(err)
	}
	if got := of(events, sb.GetId()); got != "PAUSING PAUSED FAILED" {
		t.Errorf("without a registry: %s", got)
	}
	if last := events[len(events)-1]; last.GetRemaining() != 1 {
		t.Errorf("it ends with %v", last)
	}
	if n := m.b.count("start"); n != 0 {
		t.Errorf("host-b started %d sandboxes from what only host-a has", n)
	}
	// The upload ends after the drain has: the sandbox comes back without another one.
	m.registry.set(func() {
		for _, s := range m.registry.snaps {
			s.Snapshot.State = snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE
		}
	})
	if now := r.becomes(t, patience, sb.GetId(), sandboxv1.State_STATE_RUNNING); now.GetHostId() != "host-b" {
		t.Errorf("it runs on %s", now.GetHostId())
	}
}

func TestADrainWithoutRoomElsewhereLeavesSandboxesPausedAndSaysWhy(t *testing.T) {
	m := newMesh(t)
	r := m.replica("r1")
	sb := m.onHost(r, "host-a", 1)[0]
	m.cordon("host-b", true)
	events, err := r.drain(t, as(t, "acme"), "host-a")
	if err != nil {
		t.Fatal(err)
	}
	end := events[len(events)-2]
	if end.GetStep() != sandboxv1.DrainStep_DRAIN_STEP_LEFT_PAUSED || !strings.Contains(end.GetReason(), "no host has room") || end.GetRemaining() != 0 {
		t.Errorf("it ends with %v", end)
	}
	if now := r.get(t, sb.GetId()); now.GetState() != sandboxv1.State_STATE_PAUSED || !now.GetDurable() {
		t.Errorf("it is %s, durable %v", now.GetState(), now.GetDurable())
	}
	m.cordon("host-b", false)
	if events, err = r.drain(t, as(t, "acme"), "host-a"); err != nil || of(events, sb.GetId()) != "RESUMED" {
		t.Errorf("drained again with room: %v, %v", events, err)
	}
}

func TestADrainWhoseServiceDiesInTheMiddleIsGoneOnWith(t *testing.T) {
	m := newMesh(t)
	r1 := m.replica("r1")
	all := m.onHost(r1, "host-a", 3)
	m.registry.set(func() { m.registry.durable = false })
	ctx, cancel := context.WithCancel(as(t, "acme"))
	stream, err := r1.ops.DrainHost(ctx, &sandboxv1.DrainHostRequest{HostId: "host-a"})
	if err != nil {
		t.Fatal(err)
	}
	for paused := 0; paused < len(all); {
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.GetStep() == sandboxv1.DrainStep_DRAIN_STEP_PAUSED {
			paused++
		}
	}
	cancel()
	r1.stop()
	timing(t, shortLease) // What a drain left is let be for as long.
	r2 := m.replica("r2")
	m.registry.set(func() {
		for _, s := range m.registry.snaps {
			s.Snapshot.State = snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE
		}
	})
	for _, sb := range all {
		if now := r2.becomes(t, patience, sb.GetId(), sandboxv1.State_STATE_RUNNING); now.GetHostId() != "host-b" {
			t.Errorf("%s runs on %s", sb.GetId(), now.GetHostId())
		}
	}
	if events, err := r2.drain(t, as(t, "acme"), "host-a"); err != nil || len(events) != 2 {
		t.Errorf("drained again: %v, %v", events, err)
	}
}

func TestADrainOfAHostThatIsOutOfReachLeavesItsSandboxesAsTheyAre(t *testing.T) {
	m := newMesh(t)
	timing(t, func(w *sandbox.Timing) { w.Unreachable = 300 * time.Millisecond })
	r := m.replica("r1")
	sb := m.onHost(r, "host-a", 1)[0]
	m.a.set(func() { m.a.down = true })
	events, err := r.drain(t, as(t, "acme"), "host-a")
	if err != nil || of(events, sb.GetId()) != "PAUSING FAILED" {
		t.Fatalf("%v, %v", events, err)
	}
	if now := r.get(t, sb.GetId()); now.GetState() != sandboxv1.State_STATE_RUNNING {
		t.Errorf("it is %s", now.GetState())
	}
	m.a.set(func() { m.a.down = false })
	if _, err := r.drain(t, as(t, "acme"), "host-a"); err != nil || r.get(t, sb.GetId()).GetHostId() != "host-b" {
		t.Errorf("drained again: %v", err)
	}
}

func TestAHostThatIsOutOfReachIsNamedAndNotItsAddress(t *testing.T) {
	m := newMesh(t)
	timing(t, func(w *sandbox.Timing) { w.Unreachable = 300 * time.Millisecond })
	r := m.replica("r1")
	sb := m.onHost(r, "host-a", 1)[0]
	m.a.set(func() { m.a.down = true })
	said := func(what, text string) {
		if !strings.Contains(text, "host host-a cannot be reached") || strings.Contains(text, "refused") {
			t.Errorf("%s: %s", what, text)
		}
	}
	_, err := r.PauseSandbox(as(t, "acme"), &sandboxv1.PauseSandboxRequest{SandboxId: sb.GetId()})
	wantError(t, err, codes.Unavailable, "UNAVAILABLE")
	said("pause", err.Error())
	_, err = r.ForkSandbox(as(t, "acme"), &sandboxv1.ForkSandboxRequest{SandboxId: sb.GetId(), Count: 1})
	wantError(t, err, codes.Unavailable, "UNAVAILABLE")
	said("fork", err.Error())
	list, err := r.ListSandboxes(as(t, "acme"), &sandboxv1.ListSandboxesRequest{})
	if err != nil || len(list.GetSandboxes()) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	said("the copy that was not made", list.GetSandboxes()[0].GetReason())
	events, err := r.drain(t, as(t, "acme"), "host-a")
	if err != nil || len(events) < 2 {
		t.Fatalf("%v, %v", events, err)
	}
	said("drain", events[len(events)-2].GetReason())
}

func TestASandboxThatItsHostPausesAfterADrainStaysPaused(t *testing.T) {
	m := newMesh(t)
	timing(t, shortLease)
	r := m.replica("r1")
	sb := m.onHost(r, "host-a", 1)[0]
	if _, err := r.drain(t, as(t, "acme"), "host-a"); err != nil {
		t.Fatal(err)
	}
	const snap = "snap_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	m.registry.add(snap, "", "host-b")
	m.b.put(&hostv1.HostSandbox{SandboxId: sb.GetId(), State: sandboxv1.State_STATE_PAUSED, Reason: "inactive for 60 s", SnapshotId: snap, AutoPaused: true})
	r.becomes(t, patience, sb.GetId(), sandboxv1.State_STATE_PAUSED)
	r.becomesDurable(t, sb.GetId())
	starts := m.a.count("start") + m.b.count("start")
	// Longer than what a drain left is let be.
	never(t, testTiming.Lease+4*testTiming.Reconcile, "it is started again", func() bool { return m.a.count("start")+m.b.count("start") != starts })
}

// never watches for what must not become true.
func never(t testing.TB, within time.Duration, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(within)
	for {
		select {
		case <-tick.C:
			if is() {
				t.Fatal(what)
			}
		case <-end:
			return
		}
	}
}

func TestADrainOfAnUnknownHostIsNotFound(t *testing.T) {
	m := newMesh(t)
	r := m.replica("r1")
	_, err := r.drain(t, as(t, "acme"), "host-z")
	wantCode(t, err, codes.NotFound)
	_, err = r.drain(t, as(t, "acme"), "no host!")
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "[A-Za-z0-9._-]")
}

func TestWhereASnapshotCanBeRestoredGoesByItsManifest(t *testing.T) {
	m := newMesh(t)
	r := m.replica("r1")
	const id = "snap_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	m.registry.add(id, "golden", "host-a")
	can := func(durable snapshotv1.SnapshotState, accel string) *sandboxv1.CanRestoreSnapshotResponse {
		m.registry.set(func() {
			s := m.registry.snaps[id]
			s.Snapshot.State, s.Manifest.Accel, s.Manifest.CpuFeatures = durable, accel, []string{"avx2"}
		})
		resp, err := r.ops.CanRestoreSnapshot(as(t, "acme"), &sandboxv1.CanRestoreSnapshotRequest{SnapshotId: "golden"})
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := can(snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE, "tcg")
	if v := resp.GetVerdicts(); resp.GetSnapshotId() != id || resp.GetDriver() != "qemu/tcg" || len(v) != 2 || !v[0].GetCan() || !v[1].GetCan() {
		t.Errorf("durable: %v", resp)
	}
	resp = can(snapshotv1.SnapshotState_SNAPSHOT_STATE_LOCAL, "tcg")
	if v := resp.GetVerdicts(); !v[0].GetCan() || !v[1].GetCan() || len(v[0].GetReasons()) != 0 || !strings.Contains(v[1].GetReasons()[0], "not yet in the registry") {
		t.Errorf("on host-a alone: %v", resp)
	}
	resp = can(snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE, "kvm")
	if v := resp.GetVerdicts(); v[0].GetCan() || !strings.Contains(v[0].GetReasons()[0], "qemu/kvm") {
		t.Errorf("of another accelerator: %v", resp)
	}
	_, err := r.ops.CanRestoreSnapshot(as(t, "other"), &sandboxv1.CanRestoreSnapshotRequest{SnapshotId: proto.CloneOf(resp).GetSnapshotId()})
	wantCode(t, err, codes.NotFound)
}

// wantCode checks the code alone: the fakes' errors carry no reason.
func wantCode(t testing.TB, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("error is %v, want %s", err, code)
	}
}
