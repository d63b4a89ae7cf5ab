package rpc_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/sandbox"
)

func TestADeadVMShowsAsFailedWithItsReasonWithinASecondAndOnce(t *testing.T) {
	m := newMesh(t)
	// The hosts' streams must be what tells, not the comparison every so often.
	timing(t, func(w *sandbox.Timing) { w.Reconcile = 2 * patience })
	r, other := m.replica("one"), m.replica("two")
	eventually(t, patience, "both replicas watch both hosts", func() bool { return m.a.count("watch") == 2 && m.b.count("watch") == 2 })
	least := patience // On a busy machine it is not each time within a second.
	for i := range 20 {
		if i >= 5 && least < time.Second {
			break
		}
		sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
		began := time.Now()
		m.host(sb.GetHostId()).kill(sb.GetId(), "the VMM was killed by signal 9")
		dead := r.becomes(t, patience, sb.GetId(), stFailed)
		least = min(least, time.Since(began))
		if dead.GetReason() != "the VMM was killed by signal 9" || dead.GetVersion() != sb.GetVersion()+1 {
			t.Fatalf("dead: %v, before: %v", dead, sb)
		}
		_, err := other.PauseSandbox(as(t, "acme"), &sandboxv1.PauseSandboxRequest{SandboxId: sb.GetId()})
		wantError(t, err, codes.FailedPrecondition, "ILLEGAL_STATE", "FAILED", "delete")
	}
	if least > time.Second {
		t.Errorf("it took at least %s", least)
	}
}

func TestWhatAHostDidByItselfIsFollowed(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", TimeoutSec: 60})
	host := m.host(sb.GetHostId())
	host.put(&hostv1.HostSandbox{SandboxId: sb.GetId(), State: stPaused, SnapshotId: "snap_auto", AutoPaused: true, Reason: "inactive for 60 s"})
	p := r.becomes(t, patience, sb.GetId(), stPaused)
	if p.GetSnapshotId() != "snap_auto" || p.GetReason() != "inactive for 60 s" {
		t.Fatalf("auto-paused: %v", p)
	}
	host.registry.add("snap_auto", "", host.id)
	up := r.resume(t, sb.GetId())
	if up.GetReason() != "" {
		t.Fatalf("resumed: %v", up)
	}
	// What is told of its former life must not count any more.
	host = m.host(up.GetHostId())
	host.set(func() { host.here[sb.GetId()].State, host.here[sb.GetId()].SnapshotId = stPaused, "snap_auto" })
	lists := host.count("list")
	eventually(t, patience, "it is compared twice", func() bool { return host.count("list") > lists+2 })
	if got := r.get(t, sb.GetId()); got.GetState() != stRunning {
		t.Fatalf("a stale report made it %s", got.GetState())
	}
	host.set(func() { delete(host.here, sb.GetId()) })
	gone := r.becomes(t, patience, sb.GetId(), stStopped)
	if !strings.Contains(gone.GetReason(), "no longer on host") {
		t.Fatalf("reason: %q", gone.GetReason())
	}
}

func TestUseIsNotedFromTheHostsReports(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	host := m.host(sb.GetHostId())
	later := sb.GetLastActiveTime().AsTime().Add(time.Minute)
	host.set(func() { host.here[sb.GetId()].LastActiveTime.Seconds += 60 })
	eventually(t, patience, "the row has the host's time", func() bool {
		return r.get(t, sb.GetId()).GetLastActiveTime().AsTime().Sub(later).Abs() < time.Millisecond
	})
	if got := r.get(t, sb.GetId()); got.GetVersion() != sb.GetVersion() {
		t.Fatal("use made a new version")
	}
}

func TestAVMThatNoSandboxAccountsForIsEndedAfterAGrace(t *testing.T) {
	m := newMesh(t)
	m.replica("one")
	m.replica("two")
	stray := "sb_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	m.a.start(stray, sandboxv1.StartKind_START_KIND_SPAWN, "", "")
	began := time.Now()
	eventually(t, patience, "the stray is ended", func() bool { return !m.a.running(stray) })
	if d := time.Since(began); d < testTiming.UnknownGrace {
		t.Fatalf("ended after %s", d)
	}
}

func TestASandboxIsFailedOnceItsHostIsLostForLong(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	m.scheduler.mu.Lock()
	m.scheduler.lost[sb.GetHostId()] = true
	m.scheduler.mu.Unlock()
	got := r.becomes(t, patience, sb.GetId(), stFailed)
	if !strings.Contains(got.GetReason(), sb.GetHostId()) {
		t.Fatalf("reason: %q", got.GetReason())
	}
}

func TestALifetimeEndsAPausedSandboxToo(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", MaxLifetimeSec: 600})
	r.pause(t, sb.GetId())
	m.exec("UPDATE sandbox.sandbox SET expire_time = now()")
	got := r.becomes(t, patience, sb.GetId(), stStopped)
	if got.GetReason() != "its lifetime of 600 s was over" {
		t.Fatalf("reason: %q", got.GetReason())
	}
}

// stuck makes what a replica leaves that died in the middle: rows with a lease that nobody renews, and the request.
func (m *mesh) stuck(t *testing.T, rows []sandbox.Sandbox, req *sandbox.Request) []sandbox.Sandbox {
	t.Helper()
	dead := m.store("dead", 300*time.Millisecond)
	for i := range rows {
		rows[i].Tenant, rows[i].LeaseOwner = "acme", "dead"
		rows[i].Spec = sandbox.Spec{Template: "tiny", Image: "tiny", Kind: rows[i].Kind, ParentID: rows[i].ParentID, VCPUs: 1, MemoryMB: 512, DiskMB: 512}
	}
	rows, err := dead.Apply(t.Context(), sandbox.Change{Begin: req, Insert: rows})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestWorkOfAReplicaThatDiedIsTakenUpByOneOther(t *testing.T) {
	m := newMesh(t)
	pending := "sb_01ARZ3NDEKTSV4RRFFQ69G5FA0"
	starting := "sb_01ARZ3NDEKTSV4RRFFQ69G5FA1"
	m.stuck(t, []sandbox.Sandbox{{ID: pending, State: sandbox.Pending, Work: sandbox.Work{ID: "w0", Op: sandbox.OpCreate}}}, nil)
	m.stuck(t, []sandbox.Sandbox{{
		ID: starting, State: sandbox.Starting, HostID: "host-b",
		Work: sandbox.Work{ID: "w1", Op: sandbox.OpCreate, RequestID: "crashed", Placed: true},
	}}, &sandbox.Request{Tenant: "acme", ID: "crashed", Method: "create", Hash: []byte("h"), WorkID: "w1", SandboxIDs: []string{starting}})
	r, other := m.replica("one"), m.replica("two")
	r.becomes(t, patience, pending, stRunning)
	if sb := other.becomes(t, patience, starting, stRunning); sb.GetHostId() != "host-b" {
		t.Fatalf("continued on %s", sb.GetHostId())
	}
	for _, id := range []string{pending, starting} {
		if n := m.a.count("start "+id) + m.b.count("start "+id); n != 1 {
			t.Errorf("%s was started %d times", id, n)
		}
	}
	req, err := r.store.Request(t.Context(), "acme", "crashed")
	if err != nil || req.Outcome == nil || req.Outcome.Sandboxes[0].State != sandbox.Running {
		t.Fatalf("the request is %+v, %v", req, err)
	}
}

func TestEveryKindOfStuckWorkIsTakenUp(t *testing.T) {
	m := newMesh(t)
	ids := []string{"sb_01ARZ3NDEKTSV4RRFFQ69G5FB0", "sb_01ARZ3NDEKTSV4RRFFQ69G5FB1", "sb_01ARZ3NDEKTSV4RRFFQ69G5FB2", "sb_01ARZ3NDEKTSV4RRFFQ69G5FB3", "sb_01ARZ3NDEKTSV4RRFFQ69G5FB4"}
	for _, id := range ids[:2] {
		m.a.start(id, sandboxv1.StartKind_START_KIND_SPAWN, "", "")
	}
	m.registry.add("snap_p", "", "host-a")
	work := func(op sandbox.Op) sandbox.Work {
		return sandbox.Work{ID: "w-" + string(op), Op: op, SnapshotID: "snap_new", HomeHostID: "host-a"}
	}
	m.stuck(t, []sandbox.Sandbox{{ID: ids[0], State: sandbox.Pausing, HostID: "host-a", Work: work(sandbox.OpPause)}}, nil)
	m.stuck(t, []sandbox.Sandbox{{ID: ids[1], State: sandbox.Stopping, HostID: "host-a", Work: work(sandbox.OpDelete)}}, nil)
	m.stuck(t, []sandbox.Sandbox{{ID: ids[2], State: sandbox.Resuming, HostID: "host-a", Work: work(sandbox.OpResume)}}, nil)
	// Both copies of a fork; their source is the one being paused.
	copies := []sandbox.Sandbox{{ID: ids[3]}, {ID: ids[4]}}
	for i := range copies {
		copies[i].State, copies[i].HostID, copies[i].Work = sandbox.Starting, "host-a", work(sandbox.OpFork)
		copies[i].Kind, copies[i].ParentID, copies[i].SourceSnapshotID = sandbox.Fork, ids[0], "snap_new"
	}
	m.stuck(t, copies, nil)
	r := m.replica("one")
	m.replica("two")
	for i, want := range []sandboxv1.State{stPaused, stStopped, stRunning, stRunning, stRunning} {
		r.becomes(t, patience, ids[i], want)
	}
	if n := m.a.count("fork"); n != 1 {
		t.Fatalf("forked %d times", n)
	}
}

func TestAReplicaThatStopsLeavesItsWorkToAnotherAtOnce(t *testing.T) {
	m := newMesh(t)
	// Only giving up, and not the end of the lease, can explain the success.
	timing(t, func(w *sandbox.Timing) { w.Lease = 3 * patience })
	r := m.replica("one")
	asked, goOn := make(chan string, 8), make(chan struct{})
	slow := func(q *hostv1.StartSandboxRequest) error {
		asked <- q.GetSpec().GetSandboxId()
		<-goOn
		return nil
	}
	m.a.onStart, m.b.onStart = slow, slow
	q := &sandboxv1.CreateSandboxRequest{Template: "tiny", RequestId: "moved"}
	failed := make(chan error, 1)
	go func() {
		_, err := r.CreateSandbox(as(t, "acme"), q)
		failed <- err
	}()
	id := <-asked
	r.stop()
	wantError(t, <-failed, codes.Unavailable, "SHUTTING_DOWN")
	other := m.replica("two")
	if again := <-asked; again != id {
		t.Fatalf("took up %s", again)
	}
	close(goOn)
	resp, err := other.CreateSandbox(as(t, "acme"), q)
	if err != nil || resp.GetSandbox().GetId() != id {
		t.Fatalf("repeated: %v, %v", resp, err)
	}
}

func TestTwentyCreationsAtOnceAllRunOrAreRefused(t *testing.T) {
	m := newMesh(t)
	replicas := []*replica{m.replica("one"), m.replica("two")}
	var mu sync.Mutex
	room := 6
	limited := func(*hostv1.StartSandboxRequest) error {
		mu.Lock()
		defer mu.Unlock()
		if room--; room < 0 {
			return status.Error(codes.ResourceExhausted, "host full")
		}
		return nil
	}
	m.a.onStart, m.b.onStart = limited, limited
	var wg sync.WaitGroup
	var up int
	for i := range 20 {
		wg.Go(func() {
			_, err := replicas[i%2].CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "tiny"})
			mu.Lock()
			defer mu.Unlock()
			switch status.Code(err) {
			case codes.OK:
				up++
			case codes.ResourceExhausted:
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := replicas[0].ListSandboxes(as(t, "acme"), &sandboxv1.ListSandboxesRequest{States: []sandboxv1.State{stRunning}})
	if err != nil || up != 6 || len(list.GetSandboxes()) != 6 {
		t.Fatalf("%d created, %d listed, %v", up, len(list.GetSandboxes()), err)
	}
}
