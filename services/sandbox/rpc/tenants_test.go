package rpc_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// asAdmin is a context of tenant acme with an administrator's key.
func asAdmin(t testing.TB) context.Context {
	return metadata.AppendToOutgoingContext(as(t, "acme"), "covey-scopes", "admin", "covey-key-id", "key_admin")
}

func (r *replica) limit(t testing.TB, q *sandboxv1.Quota) {
	t.Helper()
	if _, err := r.tenants.SetQuota(asAdmin(t), &sandboxv1.SetQuotaRequest{TenantId: "acme", Limits: q}); err != nil {
		t.Fatal(err)
	}
}

func (r *replica) inUse(t testing.TB) *sandboxv1.Quota {
	t.Helper()
	q, err := r.tenants.GetQuota(as(t, "acme"), &sandboxv1.GetQuotaRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return q.GetInUse()
}

func TestAQuotaIsExactUnderConcurrencyOfReplicas(t *testing.T) {
	m := newMesh(t)
	replicas := []*replica{m.replica("one"), m.replica("two"), m.replica("three")}
	replicas[0].limit(t, &sandboxv1.Quota{Sandboxes: proto.Uint32(100), Vcpus: proto.Uint32(10)})
	var wg sync.WaitGroup
	var mu sync.Mutex
	made, refused := 0, 0
	for i := range 30 {
		wg.Go(func() {
			_, err := replicas[i%3].CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "tiny", Vcpus: 2, RequestId: fmt.Sprint(i)})
			mu.Lock()
			defer mu.Unlock()
			switch status.Code(err) {
			case codes.OK:
				made++
			case codes.ResourceExhausted:
				refused++
				wantError(t, err, codes.ResourceExhausted, "QUOTA_EXCEEDED", "quota vcpus of tenant acme", "limit is 10", "10 are in use", "2 more were asked")
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 5 || refused != 25 {
		t.Fatalf("%d were made and %d refused, want 5 and 25", made, refused)
	}
	if q := replicas[1].inUse(t); q.GetVcpus() != 10 || q.GetSandboxes() != 5 {
		t.Errorf("in use: %v", q)
	}
	if _, err := replicas[0].CreateSandbox(as(t, "other"), &sandboxv1.CreateSandboxRequest{Template: "tiny"}); err != nil {
		t.Errorf("another tenant pays for it: %v", err)
	}
}

func TestAPauseGivesBackAndAResumeTakesAgain(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	r.limit(t, &sandboxv1.Quota{Sandboxes: proto.Uint32(3), Vcpus: proto.Uint32(1), MemoryMb: proto.Uint64(512)})
	first := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", RequestId: "first", AutoResume: true})
	q := &sandboxv1.CreateSandboxRequest{Template: "tiny", RequestId: "second"}
	_, err := r.CreateSandbox(as(t, "acme"), q)
	wantError(t, err, codes.ResourceExhausted, "QUOTA_EXCEEDED", "vcpus")
	r.pause(t, first.GetId())
	second := r.create(t, q) // The same request: it was refused, so it is done now.
	// What was answered is answered again, whatever the quota.
	if again := r.create(t, q); again.GetId() != second.GetId() {
		t.Errorf("the request made %s and %s", second.GetId(), again.GetId())
	}
	_, err = r.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: first.GetId()})
	wantError(t, err, codes.ResourceExhausted, "QUOTA_EXCEEDED", "limit is 1", "1 are in use", "1 more")
	_, err = r.locate.LocateSandbox(as(t, "acme"), &sandboxv1.LocateSandboxRequest{SandboxId: first.GetId(), Wake: true})
	wantError(t, err, codes.ResourceExhausted, "QUOTA_EXCEEDED")
	_, err = r.ForkSandbox(as(t, "acme"), &sandboxv1.ForkSandboxRequest{SandboxId: second.GetId(), Count: 2})
	wantError(t, err, codes.ResourceExhausted, "QUOTA_EXCEEDED", "quota sandboxes", "limit is 3", "2 are in use", "2 more")
	if _, err := r.DeleteSandbox(as(t, "acme"), &sandboxv1.DeleteSandboxRequest{SandboxId: second.GetId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: first.GetId()}); err != nil {
		t.Errorf("resume with room again: %v", err)
	}
	if q := r.inUse(t); q.GetSandboxes() != 1 || q.GetVcpus() != 1 || q.GetMemoryMb() != 512 {
		t.Errorf("in use: %v", q)
	}
}

func TestTheQuotaOfTemplatesIsExactUnderConcurrency(t *testing.T) {
	m := newMesh(t)
	replicas := []*replica{m.replica("one"), m.replica("two")}
	replicas[0].limit(t, &sandboxv1.Quota{Snapshots: proto.Uint32(3)})
	sb := replicas[0].create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for i := range 12 {
		wg.Go(func() {
			_, err := replicas[i%2].CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: fmt.Sprintf("t%d", i)})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
				return
			}
			wantError(t, err, codes.ResourceExhausted, "QUOTA_EXCEEDED", "quota snapshots", "limit is 3", "3 are in use")
		})
	}
	wg.Wait()
	if made != 3 {
		t.Fatalf("%d templates were made, want 3", made)
	}
	// One that could not be made takes nothing.
	replicas[0].limit(t, &sandboxv1.Quota{Snapshots: proto.Uint32(4)})
	m.host(sb.GetHostId()).set(func() {
		m.host(sb.GetHostId()).onSnapshot = func(*hostv1.SnapshotSandboxRequest) error { return status.Error(codes.Aborted, "as told") }
	})
	if _, err := replicas[0].CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "fails"}); err == nil {
		t.Fatal("it was made")
	}
	m.host(sb.GetHostId()).set(func() { m.host(sb.GetHostId()).onSnapshot = nil })
	if _, err := replicas[0].CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "fits"}); err != nil {
		t.Errorf("the fourth: %v", err)
	}
	replicas[0].limit(t, &sandboxv1.Quota{SnapshotBytes: proto.Uint64(4 << 20)})
	_, err := replicas[0].CreateSnapshot(as(t, "acme"), &sandboxv1.CreateSnapshotRequest{SandboxId: sb.GetId(), Name: "too-much"})
	wantError(t, err, codes.ResourceExhausted, "QUOTA_EXCEEDED", "snapshot_bytes")
}

func TestUsageIsTheSumOfTheTimesBetweenTransitionsAcrossADeadReplica(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	began := time.Now().Add(-time.Minute)
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", Vcpus: 2, MemoryMb: 2048})
	watch := func(r *replica, from string) []*sandboxv1.WatchSandboxesResponse {
		ctx, cancel := context.WithCancel(as(t, "acme"))
		defer cancel()
		w, err := r.WatchSandboxes(ctx, &sandboxv1.WatchSandboxesRequest{ResumeToken: from})
		if err != nil {
			t.Fatal(err)
		}
		var all []*sandboxv1.WatchSandboxesResponse
		for {
			e, err := w.Recv()
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, e)
			if e.GetSandbox().GetState() == stStopped {
				return all
			}
		}
	}
	r.pause(t, sb.GetId())
	r.stop() // The replica dies; another goes on.
	r = m.replica("two")
	if _, err := r.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: sb.GetId()}); err != nil {
		t.Fatal(err)
	}
	open, err := r.tenants.GetUsage(as(t, "acme"), &sandboxv1.GetUsageRequest{})
	if err != nil || open.GetVcpuSeconds() <= 0 || open.GetSandboxCount() != 1 {
		t.Fatalf("while it runs: %v, %v", open, err)
	}
	if _, err := r.DeleteSandbox(as(t, "acme"), &sandboxv1.DeleteSandboxRequest{SandboxId: sb.GetId()}); err != nil {
		t.Fatal(err)
	}
	var want float64
	var since time.Time
	for _, e := range watch(r, "0") {
		at := e.GetSandbox().GetStateTime().AsTime()
		runs := e.GetSandbox().GetState() == stRunning || e.GetSandbox().GetState() == sandboxv1.State_STATE_PAUSING
		switch {
		case runs && since.IsZero():
			since = at
		case !runs && !since.IsZero():
			want += at.Sub(since).Seconds()
			since = time.Time{}
		}
	}
	u, err := r.tenants.GetUsage(as(t, "acme"), &sandboxv1.GetUsageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	near := func(a, b float64) bool { return math.Abs(a-b) < 1e-5 }
	if want <= 0 || !near(u.GetVcpuSeconds(), 2*want) || !near(u.GetGibSeconds(), 2*want) || len(u.GetSandboxes()) != 1 || !near(u.GetSandboxes()[0].GetRunningSeconds(), want) {
		t.Errorf("usage %v; the transitions sum to %f s", u, want)
	}
	// Spans of time add up.
	cut := timestamppb.New(time.Now().Add(-time.Since(began) / 3))
	a, err := r.tenants.GetUsage(as(t, "acme"), &sandboxv1.GetUsageRequest{StartTime: timestamppb.New(began), EndTime: cut})
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.tenants.GetUsage(as(t, "acme"), &sandboxv1.GetUsageRequest{StartTime: cut})
	if err != nil || !near(a.GetVcpuSeconds()+b.GetVcpuSeconds(), u.GetVcpuSeconds()) {
		t.Errorf("%v and %v do not sum to %v: %v", a, b, u, err)
	}
	_, err = r.tenants.GetUsage(as(t, "acme"), &sandboxv1.GetUsageRequest{StartTime: cut, EndTime: cut})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "before end_time")
	_, err = r.tenants.GetUsage(as(t, "acme"), &sandboxv1.GetUsageRequest{EndTime: timestamppb.New(time.Time{}.Add(time.Hour))})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "start_time")
	_, err = r.tenants.GetUsage(as(t, "acme"), &sandboxv1.GetUsageRequest{TenantId: "other"})
	wantError(t, err, codes.PermissionDenied, "ADMIN_ONLY")
}

func TestTheAuditLogTellsWhoDidWhatAndHowItEnded(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	ctx := metadata.AppendToOutgoingContext(as(t, "acme"), "covey-key-id", "key_1")
	made, err := r.CreateSandbox(ctx, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetSandbox().GetId()
	if _, err := r.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id, HostId: "%%"}); err == nil {
		t.Fatal("resumed on an illegal host")
	}
	if _, err := r.GetSandbox(ctx, &sandboxv1.GetSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	r.limit(t, nil)
	_, err = r.tenants.ListAuditEvents(ctx, &sandboxv1.ListAuditEventsRequest{})
	wantError(t, err, codes.PermissionDenied, "ADMIN_ONLY")
	var got []string
	token := ""
	for {
		page, err := r.tenants.ListAuditEvents(asAdmin(t), &sandboxv1.ListAuditEventsRequest{PageSize: 3, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.GetEvents() {
			got = append(got, fmt.Sprintf("%s %s %s %s %s", e.GetMethod(), e.GetTarget(), e.GetKeyId(), e.GetCode(), e.GetReason()))
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	want := []string{
		"SetQuota acme key_admin OK ", "DeleteSandbox " + id + " key_1 OK ", "ResumeSandbox " + id + " key_1 INVALID_ARGUMENT INVALID_FIELD",
		"CreateSandbox " + id + " key_1 OK ",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the log is\n%q\nwant\n%q", got, want)
	}
	// What no database takes is refused or left out, and no failure of ours.
	_, err = r.tenants.ListAuditEvents(asAdmin(t), &sandboxv1.ListAuditEventsRequest{Target: "a\x00"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "printable")
	_, err = r.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: "sb_\x00"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "sandbox_id")
	one, err := r.tenants.ListAuditEvents(asAdmin(t), &sandboxv1.ListAuditEventsRequest{Target: id, KeyId: "key_1", TenantId: "-"})
	if err != nil || len(one.GetEvents()) != 3 {
		t.Errorf("of one sandbox: %v, %v", one, err)
	}
}

func TestWhatOtherDaemonsWriteIntoTheAuditLogIsWrittenOnceAndFoundByMethodAndResult(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	record := func(uid, method, code string, count uint32) *sandboxv1.AuditRecord {
		return &sandboxv1.AuditRecord{Uid: uid, Event: &sandboxv1.AuditEvent{
			Time: timestamppb.Now(), TenantId: "acme", KeyId: "key_1", RequestId: "req_1", Method: method, Target: "sb_1", Detail: "a\x00python3", Code: code, Count: count,
		}}
	}
	write := func(records ...*sandboxv1.AuditRecord) error {
		_, err := r.audit.WriteAuditEvents(t.Context(), &sandboxv1.WriteAuditEventsRequest{Records: records})
		return err
	}
	for _, batch := range [][]*sandboxv1.AuditRecord{
		{record("u1", "Exec", "", 1), record("u2", "Connect", "OK", 2)},
		{record("u1", "Exec", "", 1), record("u2", "Connect", "OK", 7)}, // Again, as the first answer may be lost.
		{record("u1", "Exec", "DEADLINE_EXCEEDED", 1), record("u2", "Connect", "OK", 3)},
		{record("u1", "Exec", "", 1)}, // Late: the end stays.
		nil,
	} {
		if err := write(batch...); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range [][]*sandboxv1.AuditRecord{ // No uid, one twice, a long one.
		{record("", "Exec", "", 1)}, {record("u3", "Exec", "", 1), record("u3", "Exec", "", 1)}, {record(strings.Repeat("x", 65), "Exec", "", 1)},
	} {
		wantError(t, write(bad...), codes.InvalidArgument, "INVALID_FIELD", "records")
	}
	for want, q := range map[string]*sandboxv1.ListAuditEventsRequest{
		"[Exec sb_1 apython3 DEADLINE_EXCEEDED 1]": {TenantId: "acme", Method: "Exec", Code: "DEADLINE_EXCEEDED"},
		"[Connect sb_1 apython3 OK 7]":             {TenantId: "acme", Code: "OK", Target: "sb_1"},
		"[]":                                       {TenantId: "acme", Method: "Exec", Code: "OK"},
	} {
		res, err := r.tenants.ListAuditEvents(asAdmin(t), q)
		if err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for _, e := range res.GetEvents() {
			got = append(got, fmt.Sprint(e.GetMethod(), " ", e.GetTarget(), " ", e.GetDetail(), " ", e.GetCode(), " ", e.GetCount()))
		}
		if fmt.Sprint(got) != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
}
