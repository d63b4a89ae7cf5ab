package rpc_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/sandbox"
)

func TestACreatedSandboxRunsAndIsReadListedAndDeleted(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", Metadata: map[string]string{"team": "blue"}, Env: map[string]string{"A": "1"}})
	if sb.GetVcpus() != 1 || sb.GetMemoryMb() != 512 || sb.GetDiskMb() != 512 || sb.GetTemplate() != "tiny" {
		t.Fatalf("defaults are %v", sb)
	}
	if !m.host(sb.GetHostId()).running(sb.GetId()) {
		t.Fatal("the host does not run it")
	}
	if got := r.get(t, sb.GetId()); got.GetVersion() != sb.GetVersion() || got.GetCreateTime().AsTime().IsZero() {
		t.Fatalf("read back %v, created %v", got, sb)
	}
	for label, n := range map[string]int{"team=blue": 1, "team=red": 0} {
		list, err := r.ListSandboxes(as(t, "acme"), &sandboxv1.ListSandboxesRequest{Label: []string{label}})
		if err != nil || len(list.GetSandboxes()) != n {
			t.Fatalf("list %s: %v, %v", label, list, err)
		}
	}
	del, err := r.DeleteSandbox(as(t, "acme"), &sandboxv1.DeleteSandboxRequest{SandboxId: sb.GetId()})
	if err != nil || del.GetSandbox().GetState() != sandboxv1.State_STATE_STOPPED {
		t.Fatalf("delete: %v, %v", del, err)
	}
	if m.host(sb.GetHostId()).running(sb.GetId()) {
		t.Fatal("the host still runs it")
	}
	again, err := r.DeleteSandbox(as(t, "acme"), &sandboxv1.DeleteSandboxRequest{SandboxId: sb.GetId()})
	if err != nil || again.GetSandbox().GetVersion() != del.GetSandbox().GetVersion() {
		t.Fatalf("second delete: %v, %v", again, err)
	}
}

func TestBadRequestsNameTheFieldAndWhatIsLegal(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	m.registry.add("snap_01ARZ3NDEKTSV4RRFFQ69G5FAV", "golden", "host-a")
	many := map[string]string{}
	for i := range 65 {
		many["k"+strings.Repeat("x", i)] = ""
	}
	for name, c := range map[string]struct {
		q     *sandboxv1.CreateSandboxRequest
		words []string
	}{
		"vcpus":               {&sandboxv1.CreateSandboxRequest{Vcpus: 1000}, []string{"1 to 8", "1000"}},
		"memory_mb":           {&sandboxv1.CreateSandboxRequest{MemoryMb: 64}, []string{"128 to 16384"}},
		"disk_mb":             {&sandboxv1.CreateSandboxRequest{DiskMb: 100}, []string{"8192 to 65536", "base"}},
		"timeout_sec":         {&sandboxv1.CreateSandboxRequest{TimeoutSec: 604801}, []string{"604800"}},
		"metadata":            {&sandboxv1.CreateSandboxRequest{Metadata: many}, []string{"at most 64", "65"}},
		"env":                 {&sandboxv1.CreateSandboxRequest{Env: map[string]string{"A=B": ""}}, []string{"A=B"}},
		"request_id":          {&sandboxv1.CreateSandboxRequest{RequestId: strings.Repeat("x", 65)}, []string{"64"}},
		"template":            {&sandboxv1.CreateSandboxRequest{Template: "../etc"}, []string{"[a-z0-9._-]"}},
		"network.allow_cidrs": {&sandboxv1.CreateSandboxRequest{Network: &sandboxv1.NetworkPolicy{AllowCidrs: []string{"::/0"}}}, []string{"IPv4"}},
		"restore_policy":      {&sandboxv1.CreateSandboxRequest{RestorePolicy: 77}, []string{"DISK_ONLY"}},
	} {
		_, err := r.CreateSandbox(as(t, "acme"), c.q)
		wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", append(c.words, name)...)
	}
	_, err := r.CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "nope"})
	wantError(t, err, codes.NotFound, "TEMPLATE_NOT_FOUND", "nope", "base", "tiny")
	_, err = r.CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "golden", Vcpus: 1})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "vcpus", "2", "golden")
	_, err = r.CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Network: &sandboxv1.NetworkPolicy{AllowCidrs: []string{"10.0.0.0/8"}}})
	wantError(t, err, codes.PermissionDenied, "SCOPE_REQUIRED", "network.allow_cidrs", "admin")
	_, err = r.GetSandbox(as(t, "acme"), &sandboxv1.GetSandboxRequest{SandboxId: "x"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "sandbox_id")
	if list, _ := r.ListSandboxes(as(t, "acme"), &sandboxv1.ListSandboxesRequest{}); len(list.GetSandboxes()) != 0 {
		t.Fatalf("refused requests left %v", list)
	}
}

func TestATemplateGivesItsSizeAndIsPinnedWhileASandboxReadsIt(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	id := "snap_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	m.registry.add(id, "golden", "host-a")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "golden", Vcpus: 2})
	if sb.GetVcpus() != 2 || sb.GetMemoryMb() != 1024 || sb.GetDiskMb() != 2048 {
		t.Fatalf("size is %v", sb)
	}
	leased := func() (ok bool) {
		m.registry.set(func() { ok = m.registry.leases["sandbox/"+sb.GetId()+" "+id] })
		return ok
	}
	if !leased() {
		t.Fatal("the template is not pinned")
	}
	r.pause(t, sb.GetId())
	eventually(t, patience, "the pause unpins the template", func() bool { return !leased() })
	if !m.registry.has(id) {
		t.Fatal("the template was dropped")
	}
}

func TestTwentyIdenticalRequestsMakeOneSandbox(t *testing.T) {
	m := newMesh(t)
	replicas := []*replica{m.replica("one"), m.replica("two")}
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			resp, err := replicas[i%2].CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{RequestId: "same", Template: "tiny"})
			if err != nil {
				t.Error(err)
				return
			}
			if resp.GetSandbox().GetState() != sandboxv1.State_STATE_RUNNING {
				t.Errorf("answered while %s", resp.GetSandbox().GetState())
			}
			ids[i] = resp.GetSandbox().GetId()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("made several: %v", ids)
		}
	}
	if n := m.a.count("start") + m.b.count("start"); n != 1 {
		t.Fatalf("hosts were asked %d times", n)
	}
	_, err := replicas[1].CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{RequestId: "same", Template: "base"})
	wantError(t, err, codes.AlreadyExists, "REQUEST_ID_REUSED", "same")
	_, err = replicas[1].PauseSandbox(as(t, "acme"), &sandboxv1.PauseSandboxRequest{RequestId: "same", SandboxId: ids[0]})
	wantError(t, err, codes.AlreadyExists, "REQUEST_ID_REUSED", "create")
	if _, err := replicas[1].CreateSandbox(as(t, "other"), &sandboxv1.CreateSandboxRequest{RequestId: "same", Template: "base"}); err != nil {
		t.Fatalf("another tenant's request id: %v", err)
	}
}

func TestARepeatedRequestGetsTheFirstOnesError(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	refuse := func(*hostv1.StartSandboxRequest) error { return status.Error(codes.DataLoss, "image damaged") }
	m.a.onStart, m.b.onStart = refuse, refuse
	q := &sandboxv1.CreateSandboxRequest{RequestId: "once", Template: "tiny"}
	for range 2 {
		_, err := r.CreateSandbox(as(t, "acme"), q)
		if status.Code(err) != codes.DataLoss {
			t.Fatal(err)
		}
	}
	if n := m.a.count("start") + m.b.count("start"); n != 1 {
		t.Fatalf("hosts were asked %d times", n)
	}
}

func TestAHostThatIsOutOfReachForAMomentIsTriedAgainWhereNoOtherFits(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	timing(t, func(w *sandbox.Timing) { w.Unreachable = 300 * time.Millisecond })
	impatient := m.replica("two")
	var ids []string // of the tries on host-a, one after the other
	m.a.onStart = func(q *hostv1.StartSandboxRequest) error {
		if ids = append(ids, q.GetRestoreId()); len(ids) == 1 {
			return apierr.E(codes.Unavailable, "UNAVAILABLE", "the registry cannot be reached")
		}
		return nil
	}
	m.b.onStart = func(*hostv1.StartSandboxRequest) error {
		return status.Error(codes.ResourceExhausted, "no slot is free")
	}
	if sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"}); sb.GetHostId() != "host-a" {
		t.Fatalf("runs on %s", sb.GetHostId())
	}
	m.a.set(func() {
		if len(ids) != 2 || ids[0] == ids[1] {
			t.Errorf("its tries were %q", ids)
		}
		m.a.onStart = func(*hostv1.StartSandboxRequest) error {
			return apierr.E(codes.Unavailable, "UNAVAILABLE", "the registry cannot be reached")
		}
	})
	_, err := impatient.CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "no slot is free") || strings.Count(err.Error(), "the registry cannot be reached") != 1 {
		t.Fatal(err)
	}
}

func TestARefusingHostIsLeftForAnotherAtOnce(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	full := func(*hostv1.StartSandboxRequest) error {
		return status.Error(codes.ResourceExhausted, "no slot is free")
	}
	m.a.onStart = full
	for range 2 {
		if sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"}); sb.GetHostId() != "host-b" {
			t.Fatalf("runs on %s", sb.GetHostId())
		}
	}
	m.b.set(func() { m.b.onStart = full })
	_, err := r.CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "no slot is free") || !strings.Contains(err.Error(), "asked for") {
		t.Fatal(err)
	}
	list, err := r.ListSandboxes(as(t, "acme"), &sandboxv1.ListSandboxesRequest{States: []sandboxv1.State{sandboxv1.State_STATE_FAILED}})
	if err != nil || len(list.GetSandboxes()) != 1 || !strings.Contains(list.GetSandboxes()[0].GetReason(), "no slot is free") {
		t.Fatalf("failed ones: %v, %v", list, err)
	}
	m.scheduler.mu.Lock()
	defer m.scheduler.mu.Unlock()
	if len(m.scheduler.held) != 2 {
		t.Fatalf("reservations left: %v", m.scheduler.held)
	}
}

func TestASandboxRunsAlthoughItsCallerWentAway(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	asked, goOn := make(chan string, 1), make(chan struct{})
	slow := func(q *hostv1.StartSandboxRequest) error {
		asked <- q.GetSpec().GetSandboxId()
		<-goOn
		return nil
	}
	m.a.onStart, m.b.onStart = slow, slow
	ctx, cancel := context.WithCancel(as(t, "acme"))
	failed := make(chan error, 1)
	go func() {
		_, err := r.CreateSandbox(ctx, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
		failed <- err
	}()
	id := <-asked
	cancel()
	if err := <-failed; status.Code(err) != codes.Canceled {
		t.Fatal(err)
	}
	close(goOn)
	r.becomes(t, patience, id, sandboxv1.State_STATE_RUNNING)
}

func TestADeletionDuringCreationWinsAndLeavesNothing(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	asked, goOn := make(chan string, 1), make(chan struct{})
	slow := func(q *hostv1.StartSandboxRequest) error {
		asked <- q.GetSpec().GetSandboxId()
		<-goOn
		return nil
	}
	m.a.onStart, m.b.onStart = slow, slow
	created := make(chan error, 1)
	go func() {
		_, err := r.CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "tiny"})
		created <- err
	}()
	id := <-asked
	if _, err := r.DeleteSandbox(as(t, "acme"), &sandboxv1.DeleteSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	wantError(t, <-created, codes.Aborted, "CONCURRENT_CHANGE", id)
	close(goOn)
	// The hosts' starts end only now, after their destruction: the reconciler finds the VM.
	eventually(t, patience, "no VM is left", func() bool {
		return !m.a.running(id) && !m.b.running(id) && m.a.count("destroy")+m.b.count("destroy") > 1
	})
	if sb := r.get(t, id); sb.GetState() != sandboxv1.State_STATE_STOPPED {
		t.Fatalf("it is %s", sb.GetState())
	}
}
