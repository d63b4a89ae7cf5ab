package rpc_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/sandbox"
)

const (
	stRunning = sandboxv1.State_STATE_RUNNING
	stPaused  = sandboxv1.State_STATE_PAUSED
	stStopped = sandboxv1.State_STATE_STOPPED
	stFailed  = sandboxv1.State_STATE_FAILED
)

func (r *replica) resume(t *testing.T, id string) *sandboxv1.Sandbox {
	t.Helper()
	resp, err := r.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetSandbox()
}

func (r *replica) delete(t *testing.T, id string) *sandboxv1.Sandbox {
	t.Helper()
	resp, err := r.DeleteSandbox(as(t, "acme"), &sandboxv1.DeleteSandboxRequest{SandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetSandbox()
}

func TestPauseAndResumeKeepOnlyTheSnapshotsThatAreNeeded(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	id := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"}).GetId()
	p1 := r.pause(t, id)
	if p1.GetState() != stPaused || p1.GetSnapshotId() == "" {
		t.Fatalf("paused: %v", p1)
	}
	if again := r.pause(t, id); again.GetVersion() < p1.GetVersion() || again.GetSnapshotId() != p1.GetSnapshotId() {
		t.Fatalf("second pause: %v", again)
	}
	if up := r.resume(t, id); up.GetState() != stRunning || up.GetSnapshotId() != "" {
		t.Fatalf("resumed: %v", up)
	}
	if up := r.resume(t, id); up.GetState() != stRunning {
		t.Fatalf("second resume: %v", up)
	}
	if !m.registry.has(p1.GetSnapshotId()) {
		t.Fatal("the snapshot that the VM still reads from was dropped")
	}
	receipt, err := r.GetRestoreReceipt(as(t, "acme"), &sandboxv1.GetRestoreReceiptRequest{SandboxId: id})
	if err != nil || receipt.GetReceipt().GetKind() != sandboxv1.StartKind_START_KIND_RESUME || receipt.GetReceipt().GetSnapshotId() != p1.GetSnapshotId() {
		t.Fatalf("receipt: %v, %v", receipt, err)
	}
	p2 := r.pause(t, id)
	eventually(t, patience, "the former snapshot is dropped from registry and host", func() bool {
		return !m.registry.has(p1.GetSnapshotId()) && m.a.count("remove "+p1.GetSnapshotId())+m.b.count("remove "+p1.GetSnapshotId()) > 0
	})
	r.delete(t, id)
	eventually(t, patience, "the last snapshot is dropped", func() bool { return !m.registry.has(p2.GetSnapshotId()) })
}

func TestConcurrentPausesAndResumesAreOne(t *testing.T) {
	m := newMesh(t)
	replicas := []*replica{m.replica("one"), m.replica("two")}
	id := replicas[0].create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"}).GetId()
	host := m.host(replicas[0].get(t, id).GetHostId())
	goOn := make(chan struct{})
	host.set(func() { host.onPause = func(*hostv1.PauseSandboxRequest) error { <-goOn; return nil } })
	results := make([]*sandboxv1.Sandbox, 8)
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() { results[i] = replicas[i%2].pause(t, id) })
	}
	eventually(t, patience, "the pause is under way", func() bool { return host.count("pause") > 0 })
	_, err := replicas[1].ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: id})
	wantError(t, err, codes.FailedPrecondition, "ILLEGAL_STATE", "PAUSING", "PAUSED", "delete")
	close(goOn)
	wg.Wait()
	for _, sb := range results {
		if sb.GetState() != stPaused || sb.GetSnapshotId() != results[0].GetSnapshotId() {
			t.Fatalf("pauses differ: %v and %v", results[0], sb)
		}
	}
	if n := host.count("pause"); n != 1 {
		t.Fatalf("the host was asked %d times", n)
	}
	for i := range results {
		wg.Go(func() { results[i] = replicas[i%2].resume(t, id) })
	}
	wg.Wait()
	if n := m.a.count("start") + m.b.count("start"); n != 2 {
		t.Fatalf("hosts were asked to start it %d times", n)
	}
}

func TestAFailedResumeLeavesItPausedAndCanBeRepeated(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	before := r.pause(t, sb.GetId())
	broken := func(*hostv1.StartSandboxRequest) error {
		return status.Error(codes.DataLoss, "build 0123 frame 4: checksum is wrong")
	}
	m.a.set(func() { m.a.onStart = broken })
	m.b.set(func() { m.b.onStart = broken })
	_, err := r.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: sb.GetId()})
	if status.Code(err) != codes.DataLoss {
		t.Fatal(err)
	}
	after := r.get(t, sb.GetId())
	if after.GetState() != stPaused || after.GetSnapshotId() != before.GetSnapshotId() || after.GetHostId() != before.GetHostId() {
		t.Fatalf("after the failed resume: %v, before: %v", after, before)
	}
	m.a.set(func() { m.a.onStart = nil })
	m.b.set(func() { m.b.onStart = nil })
	r.resume(t, sb.GetId())
}

func TestASnapshotThatIsNotDurableIsResumedWhereItIsUnlessAnotherHostIsAskedFor(t *testing.T) {
	m := newMesh(t)
	m.registry.durable = false
	r := m.replica("one")
	for range 3 {
		sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
		r.pause(t, sb.GetId())
		if up := r.resume(t, sb.GetId()); up.GetHostId() != sb.GetHostId() {
			t.Fatalf("resumed on %s, saved on %s", up.GetHostId(), sb.GetHostId())
		}
	}
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	p := r.pause(t, sb.GetId())
	m.registry.becomesDurable(p.GetSnapshotId())
	eventually(t, patience, "it is shown durable", func() bool { return r.get(t, sb.GetId()).GetDurable() })
}

// becomesDurable ends a snapshot's upload.
func (r *fakeRegistry) becomesDurable(id string) {
	r.set(func() { r.snaps[id].Snapshot.State = snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE })
}

// resumeOn resumes on a certain host in the background.
func (r *replica) resumeOn(ctx context.Context, id, host string) chan error {
	answer := make(chan error, 1)
	go func() {
		_, err := r.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id, HostId: host})
		answer <- err
	}()
	return answer
}

func TestAResumeElsewhereWaitsForTheSnapshotToBeDurable(t *testing.T) {
	m := newMesh(t)
	m.registry.durable = false
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	id, home := sb.GetId(), sb.GetHostId()
	other := map[string]string{"host-a": "host-b", "host-b": "host-a"}[home]

	// As long as the call's deadline, and the service's patience.
	snap := r.pause(t, id).GetSnapshotId()
	patient := r
	timing(t, func(w *sandbox.Timing) { w.Reply = 10 * time.Second })
	r = m.replica("two")
	short, cancel := context.WithTimeout(as(t, "acme"), testTiming.Reply+500*time.Millisecond)
	defer cancel()
	wantError(t, <-r.resumeOn(short, id, other), codes.Unavailable, "SNAPSHOT_NOT_DURABLE", "did not get there within", home)
	if short.Err() != nil {
		t.Error("the reason came after the call's end")
	}
	timing(t, func(w *sandbox.Timing) { w.Durable = time.Second })
	r = m.replica("three")
	wantError(t, <-r.resumeOn(as(t, "acme"), id, other), codes.Unavailable, "SNAPSHOT_NOT_DURABLE", "did not get there within", home)

	r = patient
	answer := r.resumeOn(as(t, "acme"), id, other)
	eventually(t, patience, "it resumes", func() bool { return r.get(t, id).GetState() == sandboxv1.State_STATE_RESUMING })
	if m.host(other).running(id) || m.host(home).running(id) {
		t.Error("it runs before it is durable")
	}
	m.registry.becomesDurable(snap)
	if err := <-answer; err != nil || r.get(t, id).GetHostId() != other || !m.host(other).running(id) {
		t.Fatalf("after it became durable: %v, it is on %s", err, r.get(t, id).GetHostId())
	}

	// A host that has it already need not wait; one that nobody else has is not waited for where it is lost.
	snap = r.pause(t, id).GetSnapshotId()
	m.registry.set(func() { m.registry.snaps[snap].HostIds = []string{other, home} })
	if err := <-r.resumeOn(as(t, "acme"), id, home); err != nil || !m.host(home).running(id) {
		t.Fatalf("on a host that has it: %v", err)
	}
	r.pause(t, id)
	m.scheduler.mu.Lock()
	m.scheduler.lost[home] = true
	m.scheduler.mu.Unlock()
	began := time.Now()
	wantError(t, <-r.resumeOn(as(t, "acme"), id, other), codes.FailedPrecondition, "SNAPSHOT_NOT_DURABLE", "lost", home)
	if d := time.Since(began); d > patience {
		t.Errorf("that its host is lost was said after %s", d)
	}
	if got := r.get(t, id); got.GetState() != stPaused || got.GetHostId() != home {
		t.Errorf("it is %s on %s", got.GetState(), got.GetHostId())
	}
}

func TestWhereTheHostThatHasASnapshotCannotTakeItItGoesElsewhereOnceItIsDurable(t *testing.T) {
	m := newMesh(t)
	m.registry.durable = false
	r := m.replica("one")
	timing(t, func(w *sandbox.Timing) { w.Durable = time.Second })
	impatient := m.replica("two")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	snap := r.pause(t, sb.GetId()).GetSnapshotId()
	m.scheduler.mu.Lock()
	m.scheduler.cordoned[sb.GetHostId()] = true
	m.scheduler.mu.Unlock()
	_, err := impatient.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: sb.GetId()})
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("while it is not durable: %v", err)
	}
	answer := r.resumeOn(as(t, "acme"), sb.GetId(), "")
	eventually(t, patience, "it resumes", func() bool { return r.get(t, sb.GetId()).GetState() == sandboxv1.State_STATE_RESUMING })
	m.registry.becomesDurable(snap)
	if err := <-answer; err != nil || r.get(t, sb.GetId()).GetHostId() == sb.GetHostId() {
		t.Errorf("got %v, it is on %s", err, r.get(t, sb.GetId()).GetHostId())
	}
}

func TestWhatAHostMustHaveGoesByTheRestorePolicy(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	for _, x := range []struct {
		policy sandboxv1.RestorePolicy
		unfit  bool
		code   codes.Code
		asked  []string // machine models, in order
	}{
		{policy: sandboxv1.RestorePolicy_RESTORE_POLICY_MEMORY_REQUIRED, asked: []string{"microvm-8.0"}},
		{policy: sandboxv1.RestorePolicy_RESTORE_POLICY_PREFER_MEMORY, asked: []string{"microvm-8.0"}},
		{policy: sandboxv1.RestorePolicy_RESTORE_POLICY_DISK_ONLY, asked: []string{""}},
		{policy: sandboxv1.RestorePolicy_RESTORE_POLICY_PREFER_MEMORY, unfit: true, asked: []string{"microvm-8.0", ""}},
		{policy: sandboxv1.RestorePolicy_RESTORE_POLICY_MEMORY_REQUIRED, unfit: true, code: codes.ResourceExhausted, asked: []string{"microvm-8.0"}},
	} {
		snap := r.pause(t, sb.GetId()).GetSnapshotId()
		m.registry.set(func() {
			man := m.registry.snaps[snap].Manifest
			man.Machine, man.CpuFeatures, man.KernelId = "microvm-8.0", []string{"avx"}, "k1"
		})
		m.scheduler.mu.Lock()
		m.scheduler.places, m.scheduler.unfit = nil, x.unfit
		m.scheduler.mu.Unlock()
		_, err := r.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: sb.GetId(), RestorePolicy: x.policy})
		m.scheduler.mu.Lock()
		var asked []string
		for _, p := range m.scheduler.places {
			asked = append(asked, p.GetMachine())
			if (p.GetMachine() == "") != (len(p.GetCpuFeatures()) == 0) || (p.GetMachine() == "") != (p.GetKernelId() == "") {
				t.Errorf("%s: asked for %v", x.policy, p)
			}
		}
		m.scheduler.unfit = false
		m.scheduler.mu.Unlock()
		if status.Code(err) != x.code || !slices.Equal(asked, x.asked) {
			t.Errorf("%s, unfit %v: %v, asked for %q", x.policy, x.unfit, err, asked)
		}
	}
}

func TestAFailedPauseLeavesItRunningUnlessItsVMIsGone(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	host := m.host(sb.GetHostId())
	host.set(func() {
		host.onPause = func(*hostv1.PauseSandboxRequest) error { return status.Error(codes.ResourceExhausted, "disk full") }
	})
	_, err := r.PauseSandbox(as(t, "acme"), &sandboxv1.PauseSandboxRequest{SandboxId: sb.GetId()})
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatal(err)
	}
	if got := r.get(t, sb.GetId()); got.GetState() != stRunning {
		t.Fatalf("it is %s", got.GetState())
	}
	host.set(func() {
		host.onPause = func(q *hostv1.PauseSandboxRequest) error {
			host.kill(q.GetSandboxId(), "the VMM was killed by signal 9")
			return status.Error(codes.Aborted, "the VMM is gone")
		}
	})
	_, err = r.PauseSandbox(as(t, "acme"), &sandboxv1.PauseSandboxRequest{SandboxId: sb.GetId()})
	wantError(t, err, codes.FailedPrecondition, "SANDBOX_FAILED", "signal 9")
	if got := r.get(t, sb.GetId()); got.GetState() != stFailed || got.GetReason() != "the VMM was killed by signal 9" {
		t.Fatalf("it is %s: %s", got.GetState(), got.GetReason())
	}
}

func TestDeleteDuringAPauseWaitsForItsEnd(t *testing.T) {
	m := newMesh(t)
	r, other := m.replica("one"), m.replica("two")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	host := m.host(sb.GetHostId())
	goOn := make(chan struct{})
	host.set(func() { host.onPause = func(*hostv1.PauseSandboxRequest) error { <-goOn; return nil } })
	var wg sync.WaitGroup
	wg.Go(func() { r.pause(t, sb.GetId()) })
	eventually(t, patience, "the pause is under way", func() bool { return host.count("pause") > 0 })
	wg.Go(func() {
		if sb := other.delete(t, sb.GetId()); sb.GetState() != stStopped {
			t.Errorf("deleted: %v", sb)
		}
	})
	if n := host.count("destroy"); n != 0 {
		t.Error("destroyed before the pause ended")
	}
	close(goOn)
	wg.Wait()
	eventually(t, patience, "the pause's snapshot is dropped", func() bool {
		m.registry.mu.Lock()
		defer m.registry.mu.Unlock()
		return len(m.registry.dropped) > 0 && len(m.registry.snaps) == 0
	})
}

func TestADeletionDoesNotNeedTheHostWhichIsCleanedUpWhenItReturns(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	host := m.host(sb.GetHostId())
	host.set(func() { host.down = true })
	if got := r.delete(t, sb.GetId()); got.GetState() != stStopped {
		t.Fatalf("it is %s", got.GetState())
	}
	if !host.running(sb.GetId()) {
		t.Fatal("a host that is down has destroyed a VM")
	}
	host.set(func() { host.down = false })
	eventually(t, patience, "the VM is destroyed", func() bool { return !host.running(sb.GetId()) })
}

func TestForkOfARunningSandboxMakesAllCopiesOrNone(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	src := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", Metadata: map[string]string{"a": "1"}})
	host := m.host(src.GetHostId())
	q := &sandboxv1.ForkSandboxRequest{SandboxId: src.GetId(), Count: 3, RequestId: "f", Metadata: map[string]string{"b": "2"}}
	resp, err := r.ForkSandbox(as(t, "acme"), q)
	if err != nil || len(resp.GetSandboxes()) != 3 || resp.GetSourceStoppedUsec() != 1234 {
		t.Fatalf("fork: %v, %v", resp, err)
	}
	for _, sb := range resp.GetSandboxes() {
		if sb.GetState() != stRunning || sb.GetParentId() != src.GetId() || sb.GetMetadata()["a"]+sb.GetMetadata()["b"] != "12" || !host.running(sb.GetId()) {
			t.Fatalf("copy: %v", sb)
		}
	}
	again, err := r.ForkSandbox(as(t, "acme"), q)
	if err != nil || again.GetSandboxes()[2].GetId() != resp.GetSandboxes()[2].GetId() || host.count("fork") != 1 {
		t.Fatalf("repeated fork: %v, %v", again, err)
	}
	var snap string
	m.registry.set(func() {
		for id := range m.registry.snaps {
			snap = id
		}
	})
	for i, sb := range resp.GetSandboxes() {
		if !m.registry.has(snap) {
			t.Fatalf("the fork's snapshot was dropped while %d copies read from it", 3-i)
		}
		r.delete(t, sb.GetId())
	}
	eventually(t, patience, "the fork's snapshot is dropped after the last copy", func() bool { return !m.registry.has(snap) })

	host.set(func() {
		host.onFork = func(q *hostv1.ForkSandboxRequest) error {
			host.start(q.GetCopyIds()[0], sandboxv1.StartKind_START_KIND_FORK, "", "") // A host that breaks its promise.
			return status.Error(codes.ResourceExhausted, "no slot is free")
		}
	})
	_, err = r.ForkSandbox(as(t, "acme"), &sandboxv1.ForkSandboxRequest{SandboxId: src.GetId(), Count: 3})
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatal(err)
	}
	r.wantNoneButParent(t, m, src.GetId())
}

// wantNoneButParent checks that nothing runs but the sandbox.
func (r *replica) wantNoneButParent(t *testing.T, m *mesh, id string) {
	t.Helper()
	list, err := r.ListSandboxes(as(t, "acme"), &sandboxv1.ListSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range list.GetSandboxes() {
		final := sb.GetState() == stStopped || sb.GetState() == stFailed
		if sb.GetId() != id && (!final || m.a.running(sb.GetId()) || m.b.running(sb.GetId())) {
			t.Fatalf("left: %v", sb)
		}
	}
}

func TestForkOfAPausedSandboxMakesAllCopiesOrNone(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	src := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	p := r.pause(t, src.GetId())
	resp, err := r.ForkSandbox(as(t, "acme"), &sandboxv1.ForkSandboxRequest{SandboxId: src.GetId(), Count: 4})
	if err != nil || len(resp.GetSandboxes()) != 4 {
		t.Fatalf("fork: %v, %v", resp, err)
	}
	r.delete(t, src.GetId())
	for _, sb := range resp.GetSandboxes()[1:] {
		r.delete(t, sb.GetId())
	}
	if !m.registry.has(p.GetSnapshotId()) {
		t.Fatal("the snapshot that a copy reads from was dropped with its source")
	}
	r.pause(t, resp.GetSandboxes()[0].GetId())
	eventually(t, patience, "the source's snapshot is dropped once no copy reads from it", func() bool { return !m.registry.has(p.GetSnapshotId()) })

	src = r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	r.pause(t, src.GetId())
	var mu sync.Mutex
	left := 2
	some := func(*hostv1.StartSandboxRequest) error {
		mu.Lock()
		defer mu.Unlock()
		if left--; left < 0 {
			return status.Error(codes.DataLoss, "damaged")
		}
		return nil
	}
	m.a.set(func() { m.a.onStart = some })
	m.b.set(func() { m.b.onStart = some })
	_, err = r.ForkSandbox(as(t, "acme"), &sandboxv1.ForkSandboxRequest{SandboxId: src.GetId(), Count: 4})
	if status.Code(err) != codes.DataLoss {
		t.Fatal(err)
	}
	r.delete(t, resp.GetSandboxes()[0].GetId())
	r.wantNoneButParent(t, m, src.GetId())
}

func TestASnapshotIsMadeOnceOfARunningAndOfAPausedSandbox(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	host := m.host(sb.GetHostId())
	var ids []string
	for range 2 {
		resp, err := r.CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "golden", RequestId: "s"})
		if err != nil || resp.GetSnapshot().GetName() != "golden" {
			t.Fatalf("snapshot: %v, %v", resp, err)
		}
		ids = append(ids, resp.GetSnapshot().GetId())
	}
	if ids[0] != ids[1] || host.count("snapshot") != 1 {
		t.Fatalf("made %v by %d calls", ids, host.count("snapshot"))
	}
	p := r.pause(t, sb.GetId())
	resp, err := r.CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "silver"})
	if err != nil || resp.GetSnapshot().GetId() == p.GetSnapshotId() {
		t.Fatalf("snapshot of a paused one: %v, %v", resp, err)
	}
	if got := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "silver"}); got.GetMemoryMb() != 1024 {
		t.Fatalf("made of it: %v", got)
	}
	r.delete(t, sb.GetId())
	_, err = r.CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "bronze"})
	wantError(t, err, codes.FailedPrecondition, "ILLEGAL_STATE", "STOPPED")
	_, err = r.CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "Bad Name"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "name")
}

func TestLocateWakesAPausedSandboxThatMayWake(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sleeper := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	waker := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", AutoResume: true})
	locate := func(id string, wake bool) (*sandboxv1.LocateSandboxResponse, error) {
		return r.locate.LocateSandbox(as(t, "acme"), &sandboxv1.LocateSandboxRequest{SandboxId: id, TenantId: "acme", Wake: wake})
	}
	at, err := locate(sleeper.GetId(), false)
	if err != nil || at.GetAddress() != m.host(sleeper.GetHostId()).addr {
		t.Fatalf("located at %v, %v", at, err)
	}
	r.pause(t, sleeper.GetId())
	r.pause(t, waker.GetId())
	_, err = locate(sleeper.GetId(), true)
	wantError(t, err, codes.FailedPrecondition, "SANDBOX_NOT_RUNNING", "PAUSED", "resume")
	_, err = locate(waker.GetId(), false)
	wantError(t, err, codes.FailedPrecondition, "SANDBOX_NOT_RUNNING", "PAUSED")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := locate(waker.GetId(), true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := m.a.count("start "+waker.GetId()) + m.b.count("start "+waker.GetId()); n != 2 {
		t.Fatalf("started %d times", n)
	}
}

// TestRacingOperationsLeaveOneOutcome lets everything be asked of one sandbox at once. Whatever wins, each answer is a result or
// a clear refusal, every version has one event, and row and host agree in the end.
func TestRacingOperationsLeaveOneOutcome(t *testing.T) {
	m := newMesh(t)
	replicas := []*replica{m.replica("one"), m.replica("two")}
	for range 3 {
		id := replicas[0].create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"}).GetId()
		legal := []codes.Code{codes.OK, codes.FailedPrecondition, codes.Aborted}
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				r := replicas[i%2]
				var err error
				switch i % 3 {
				case 0:
					_, err = r.PauseSandbox(as(t, "acme"), &sandboxv1.PauseSandboxRequest{SandboxId: id})
				case 1:
					_, err = r.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: id})
				case 2:
					_, err = r.ForkSandbox(as(t, "acme"), &sandboxv1.ForkSandboxRequest{SandboxId: id})
				}
				if !slices.Contains(legal, status.Code(err)) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		sb := replicas[1].get(t, id)
		if on := m.a.running(id) || m.b.running(id); on != (sb.GetState() == stRunning) {
			t.Fatalf("it is %s and runs on a host: %v", sb.GetState(), on)
		}
		events, err := replicas[0].store.Events(t.Context(), "acme", id, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range events {
			if e.Sandbox.Version != int64(i+1) {
				err = errors.Join(err, errors.New("versions have a gap"))
			}
		}
		if err != nil || int64(len(events)) < sb.GetVersion() { // That it is durable may have been noted since.
			t.Fatalf("%d events of version %d: %v", len(events), sb.GetVersion(), err)
		}
	}
}
