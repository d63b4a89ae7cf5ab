package e2e

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coveyhq/covey/deploy/mesh"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// newKey makes a key of a tenant that is revoked at the test's end.
func newKey(t *testing.T, ctx context.Context, tenant string, scopes ...string) (key, id string) {
	t.Helper()
	r, err := s.keys.CreateKey(ctx, &sandboxv1.CreateKeyRequest{Name: t.Name(), TenantId: tenant, Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetSecret(), r.GetKey().GetId()
}

// calls are all that can be asked about one sandbox.
func calls(id string) map[string]func(ctx context.Context) error {
	host := hostv1.NewHostServiceClient(s.conn)
	return map[string]func(ctx context.Context) error{
		"get": func(ctx context.Context) error {
			_, err := s.sandboxes.GetSandbox(ctx, &sandboxv1.GetSandboxRequest{SandboxId: id})
			return err
		},
		"delete": func(ctx context.Context) error {
			_, err := s.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: id})
			return err
		},
		"pause": func(ctx context.Context) error {
			_, err := s.sandboxes.PauseSandbox(ctx, &sandboxv1.PauseSandboxRequest{SandboxId: id})
			return err
		},
		"resume": func(ctx context.Context) error {
			_, err := s.sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id})
			return err
		},
		"ping": func(ctx context.Context) error {
			_, err := s.sandboxes.PingSandbox(ctx, &sandboxv1.PingSandboxRequest{SandboxId: id})
			return err
		},
		"fork": func(ctx context.Context) error {
			_, err := s.sandboxes.ForkSandbox(ctx, &sandboxv1.ForkSandboxRequest{SandboxId: id})
			return err
		},
		"receipt": func(ctx context.Context) error {
			_, err := s.sandboxes.GetRestoreReceipt(ctx, &sandboxv1.GetRestoreReceiptRequest{SandboxId: id})
			return err
		},
		"snapshot": func(ctx context.Context) error {
			_, err := s.sandboxes.CreateSnapshot(ctx, &sandboxv1.CreateSnapshotRequest{SandboxId: id, Name: "answers"})
			return err
		},
		"watch": func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			w, err := s.sandboxes.WatchSandboxes(ctx, &sandboxv1.WatchSandboxesRequest{SandboxId: id})
			if err == nil {
				_, err = w.Recv()
			}
			return err
		},
		"exec": func(ctx context.Context) error {
			_, err := s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "true"})
			return err
		},
		"processes": func(ctx context.Context) error {
			_, err := s.processes.ListProcesses(ctx, &guestv1.ListProcessesRequest{SandboxId: id})
			return err
		},
		"stat": func(ctx context.Context) error {
			_, err := s.files.StatFile(ctx, &guestv1.StatFileRequest{SandboxId: id, Path: "/"})
			return err
		},
		"metrics": func(ctx context.Context) error {
			_, err := host.GetSandboxMetrics(ctx, &hostv1.GetSandboxMetricsRequest{SandboxId: id})
			return err
		},
		"console": func(ctx context.Context) error {
			c, err := host.ReadConsole(ctx, &hostv1.ReadConsoleRequest{SandboxId: id})
			if err == nil {
				_, err = c.Recv()
			}
			return err
		},
	}
}

// answers checks code and reason of calls.
func answers(t *testing.T, ctx context.Context, all map[string]func(context.Context) error, code codes.Code, reason string, names ...string) {
	t.Helper()
	for name, call := range all {
		if len(names) > 0 && !contains(names, name) {
			continue
		}
		err := call(ctx)
		if status.Code(err) != code || reason != "" && apierr.Reason(err) != reason {
			t.Errorf("%s answers %v (%s), want %s %s", name, err, apierr.Reason(err), code, reason)
		}
	}
}

func contains(list []string, v string) bool {
	for _, l := range list {
		if l == v {
			return true
		}
	}
	return false
}

func TestWhatTheStateForbidsAndWhatItAllowsIsAnsweredAsDocumented(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, &sandboxv1.CreateSandboxRequest{MemoryMb: 256}).GetId()
	all := calls(id)
	answers(t, ctx, all, codes.OK, "", "resume", "ping", "get", "receipt", "watch", "exec", "metrics")
	answers(t, ctx, all, codes.OK, "", "pause")
	answers(t, ctx, all, codes.OK, "", "pause", "get", "receipt")
	answers(t, ctx, all, codes.FailedPrecondition, "ILLEGAL_STATE", "ping")
	answers(t, ctx, all, codes.FailedPrecondition, "SANDBOX_NOT_RUNNING", "exec", "stat", "processes", "metrics")
	err := all["ping"](ctx)
	wantError(t, err, codes.FailedPrecondition, id, "PAUSED", "legal now: resume, fork, snapshot, delete")
	answers(t, ctx, all, codes.OK, "", "delete")
	answers(t, ctx, all, codes.OK, "", "delete", "get", "watch")
	answers(t, ctx, all, codes.FailedPrecondition, "ILLEGAL_STATE", "pause", "resume", "ping", "fork", "snapshot")
	answers(t, ctx, all, codes.FailedPrecondition, "SANDBOX_NOT_RUNNING", "exec", "stat", "processes", "metrics")
}

// frozen stops a host agent as it is, as a machine that hangs, until the returned function is called.
func frozen(t *testing.T, host string) (thaw func()) {
	t.Helper()
	i := slices.IndexFunc(s.m.Processes, func(p *mesh.Process) bool { return p.Name == "hostagentd-"+host })
	if i < 0 {
		t.Fatalf("there is no agent of %s", host)
	}
	pid := s.m.Processes[i].PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw = sync.OnceFunc(func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(thaw)
	return thaw
}

func TestWhatIsUnderWayForbidsIsAnsweredAsDocumented(t *testing.T) {
	ctx := start(t)
	q := func() *sandboxv1.CreateSandboxRequest {
		r := on("host-a")
		r.Metadata = map[string]string{"answers": "states"}
		return r
	}
	pausing, resuming, stopping := create(t, ctx, q()).GetId(), create(t, ctx, q()).GetId(), create(t, ctx, q()).GetId()
	pause(t, ctx, resuming)
	thaw := frozen(t, "host-a")
	// With the host standing still, what is asked of it stays under way. What joins or waits is answered afterwards.
	type later struct {
		what string
		err  error
	}
	ends := make(chan later)
	n := 0
	ask := func(what string, call func(context.Context) error) {
		n++
		go func() { ends <- later{what, call(ctx)} }()
	}
	ask("pause", calls(pausing)["pause"])
	ask("resume", func(ctx context.Context) error {
		_, err := s.sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: resuming, HostId: "host-a"})
		return err
	})
	ask("delete", calls(stopping)["delete"])
	ask("create", func(ctx context.Context) error {
		res, err := s.sandboxes.CreateSandbox(ctx, func() *sandboxv1.CreateSandboxRequest { r := q(); r.Template = "tiny"; return r }())
		if err == nil {
			remove(t, res.GetSandbox().GetId())
		}
		return err
	})
	starting := ""
	eventually(t, 10*time.Second, "all four are under way", func() bool {
		res, err := s.sandboxes.ListSandboxes(ctx, &sandboxv1.ListSandboxesRequest{Label: []string{"answers=states"}})
		if err != nil {
			t.Fatal(err)
		}
		is := map[sandboxv1.State]bool{}
		for _, sb := range res.GetSandboxes() {
			is[sb.GetState()] = true
			if sb.GetState() == sandboxv1.State_STATE_STARTING {
				starting = sb.GetId()
			}
		}
		return is[sandboxv1.State_STATE_STARTING] && is[sandboxv1.State_STATE_PAUSING] && is[sandboxv1.State_STATE_RESUMING] && is[sandboxv1.State_STATE_STOPPING]
	})
	ask("pause again", calls(pausing)["pause"])
	ask("resume again", calls(resuming)["resume"])
	ask("delete again", calls(stopping)["delete"])
	ask("exec while it starts", calls(starting)["exec"])
	ask("exec while it is resumed", calls(resuming)["exec"])
	quick, cancel := context.WithTimeout(ctx, overrun*5*time.Second) // Not the host's answer, which does not come.
	defer cancel()
	for id, illegal := range map[string][]string{
		starting: {"pause", "resume", "ping", "fork", "snapshot"}, pausing: {"resume", "ping", "fork", "snapshot"},
		resuming: {"pause", "ping", "fork", "snapshot"}, stopping: {"pause", "resume", "ping", "fork", "snapshot"},
	} {
		answers(t, quick, calls(id), codes.FailedPrecondition, "ILLEGAL_STATE", illegal...)
		answers(t, quick, calls(id), codes.FailedPrecondition, "SANDBOX_NOT_RUNNING", "metrics", "console")
		answers(t, quick, calls(id), codes.OK, "", "get", "watch")
	}
	for _, id := range []string{pausing, stopping} {
		answers(t, quick, calls(id), codes.FailedPrecondition, "SANDBOX_NOT_RUNNING", "exec", "stat", "processes")
		answers(t, quick, calls(id), codes.OK, "", "receipt")
	}
	answers(t, quick, calls(starting), codes.NotFound, "NO_RECEIPT", "receipt")
	caller{t, ctx}.refused("ILLEGAL_STATE", "POST", "/v1/sandboxes/"+pausing+"/ping", "{}")
	thaw()
	for range n {
		if e := <-ends; e.err != nil {
			t.Errorf("%s: %v", e.what, e.err)
		}
	}
}

func TestForeignAndMalformedIDsAndKeysThatMayNot(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{MemoryMb: 256})
	// Another tenant learns nothing, not even that there is such an id.
	other, otherID := newKey(t, ctx, "answers-other", "read", "write")
	foreign := as(ctx, other)
	answers(t, foreign, calls(sb.GetId()), codes.NotFound, "SANDBOX_NOT_FOUND")
	answers(t, foreign, calls("sb_01ARZ3NDEKTSV4RRFFQ69G5FAV"), codes.NotFound, "SANDBOX_NOT_FOUND")
	answers(t, ctx, calls("sb_nonsense"), codes.InvalidArgument, "INVALID_FIELD")
	list, err := s.sandboxes.ListSandboxes(foreign, &sandboxv1.ListSandboxesRequest{})
	if err != nil || len(list.GetSandboxes()) != 0 {
		t.Errorf("another tenant's list: %v, %v", list, err)
	}
	tenants := sandboxv1.NewTenantServiceClient(s.conn)
	_, err = tenants.GetUsage(foreign, &sandboxv1.GetUsageRequest{TenantId: "default"})
	wantError(t, err, codes.PermissionDenied)
	_, err = tenants.SetQuota(foreign, &sandboxv1.SetQuotaRequest{TenantId: "answers-other"})
	wantError(t, err, codes.PermissionDenied)
	_, err = tenants.ListAuditEvents(foreign, &sandboxv1.ListAuditEventsRequest{})
	wantError(t, err, codes.PermissionDenied)

	_, err = s.sandboxes.CreateSandbox(foreign, &sandboxv1.CreateSandboxRequest{Template: "tiny", Network: &sandboxv1.NetworkPolicy{AllowCidrs: []string{"10.0.0.0/8"}}})
	refused(t, err, "SCOPE_REQUIRED")
	_, err = tenants.GetQuota(foreign, &sandboxv1.GetQuotaRequest{TenantId: "default"})
	refused(t, err, "ADMIN_ONLY")

	reader, readerID := newKey(t, ctx, "", "read")
	answers(t, as(ctx, reader), calls(sb.GetId()), codes.PermissionDenied, "MISSING_SCOPE", "delete", "pause", "resume", "ping", "fork", "snapshot", "exec")
	answers(t, as(ctx, reader), calls(sb.GetId()), codes.OK, "", "get", "receipt", "metrics", "stat")

	for _, id := range []string{otherID, readerID} {
		// Another tenant's keys are not the caller's to revoke, but by their own tenant's administrator.
		_, err := s.keys.RevokeKey(ctx, &sandboxv1.RevokeKeyRequest{KeyId: id})
		if id == otherID {
			wantError(t, err, codes.NotFound)
		} else if err != nil {
			t.Error(err)
		}
	}
	answers(t, as(ctx, reader), calls(sb.GetId()), codes.Unauthenticated, "INVALID_API_KEY", "get", "delete", "exec", "stat", "watch")
	answers(t, as(ctx, "cvy_nonsense"), calls(sb.GetId()), codes.Unauthenticated, "INVALID_API_KEY", "get", "exec")
	var problem struct {
		Error struct {
			Code, Reason, Message string
			Details               map[string]string
			RequestID             string `json:"request_id"`
		}
	}
	if code := rest(t, ctx, reader, "GET", "/v1/sandboxes", nil, &problem); code != 401 || problem.Error.Reason != "INVALID_API_KEY" || problem.Error.RequestID == "" {
		t.Errorf("over REST: %d %+v", code, problem)
	}
}

func TestARequestIDIsOneRequestForEver(t *testing.T) {
	ctx := start(t)
	q := &sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 256, RequestId: fmt.Sprintf("once-%d", time.Now().UnixNano())}
	first := create(t, ctx, proto.CloneOf(q))
	again := create(t, ctx, proto.CloneOf(q))
	if again.GetId() != first.GetId() {
		t.Errorf("the same request made %s and %s", first.GetId(), again.GetId())
	}
	changed := proto.CloneOf(q)
	changed.MemoryMb = 384
	_, err := s.sandboxes.CreateSandbox(ctx, changed)
	wantError(t, err, codes.AlreadyExists, "request_id", q.GetRequestId())
	if apierr.Reason(err) != "REQUEST_ID_REUSED" {
		t.Errorf("reason %s", apierr.Reason(err))
	}
	_, err = s.sandboxes.PauseSandbox(ctx, &sandboxv1.PauseSandboxRequest{SandboxId: first.GetId(), RequestId: q.GetRequestId()})
	wantError(t, err, codes.AlreadyExists, "create")
	// An answer that was given is given again, although the world has moved on.
	del := &sandboxv1.DeleteSandboxRequest{SandboxId: first.GetId(), RequestId: q.GetRequestId() + "-d"}
	if _, err := s.sandboxes.DeleteSandbox(ctx, del); err != nil {
		t.Fatal(err)
	}
	stale, err := s.sandboxes.CreateSandbox(ctx, proto.CloneOf(q))
	if err != nil || stale.GetSandbox().GetId() != first.GetId() || stale.GetSandbox().GetState() != sandboxv1.State_STATE_RUNNING {
		t.Errorf("the stale request answers %v, %v", stale, err)
	}
}

func TestATenantsQuotaUsageAndAuditLog(t *testing.T) {
	ctx := start(t)
	const tenant = "answers-quota"
	secret, keyID := newKey(t, ctx, tenant, "read", "write")
	own := as(ctx, secret)
	var set struct {
		TenantID string `json:"tenant_id"`
		Limits   struct{ Sandboxes, Vcpus uint32 }
	}
	if code := rest(t, ctx, s.key, "PUT", "/v1/tenants/"+tenant+"/quota", map[string]any{"sandboxes": 2, "vcpus": 1}, &set); code != 200 || set.Limits.Sandboxes != 2 || set.Limits.Vcpus != 1 {
		t.Fatalf("set quota: %d %+v", code, set)
	}
	made, err := s.sandboxes.CreateSandbox(own, &sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 256})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetSandbox().GetId()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(as(context.Background(), secret), overrun*time.Minute)
		defer cancel()
		if _, err := s.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: id}); err != nil {
			t.Error(err)
		}
	})
	_, err = s.sandboxes.CreateSandbox(own, &sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 256})
	wantError(t, err, codes.ResourceExhausted, "quota vcpus of tenant "+tenant, "limit is 1", "1 are in use", "1 more")
	if info := apierr.Info(err); info.GetReason() != "QUOTA_EXCEEDED" || info.GetMetadata()["quota"] != "vcpus" || info.GetMetadata()["limit"] != "1" {
		t.Errorf("info %v", info)
	}
	var problem struct{ Error struct{ Code, Reason string } }
	if code := rest(t, ctx, secret, "POST", "/v1/sandboxes", map[string]any{"template": "tiny"}, &problem); code != 429 || problem.Error.Reason != "QUOTA_EXCEEDED" {
		t.Errorf("over REST: %d %+v", code, problem)
	}
	if _, err := s.sandboxes.PauseSandbox(own, &sandboxv1.PauseSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	var usage struct {
		VcpuSeconds float64 `json:"vcpu_seconds"`
		GibSeconds  float64 `json:"gib_seconds"`
		Sandboxes   []struct {
			SandboxID string `json:"sandbox_id"`
		}
	}
	if code := rest(t, ctx, secret, "GET", "/v1/usage", nil, &usage); code != 200 || usage.VcpuSeconds <= 0 || usage.GibSeconds*4 != usage.VcpuSeconds || len(usage.Sandboxes) != 1 {
		t.Errorf("usage: %d %+v", code, usage)
	}
	before := usage
	if rest(t, ctx, secret, "GET", "/v1/usage", nil, &usage); usage.VcpuSeconds != before.VcpuSeconds {
		t.Errorf("a paused sandbox's usage grows: %v, %v", before, usage)
	}
	var log struct {
		Events []struct {
			Method, Target, Code, Reason string
			KeyID                        string `json:"key_id"`
			RequestID                    string `json:"request_id"`
		}
	}
	if code := rest(t, ctx, s.key, "GET", "/v1/audit?tenant_id="+tenant, nil, &log); code != 200 || len(log.Events) < 4 {
		t.Fatalf("audit: %d %+v", code, log)
	}
	got := ""
	for _, e := range log.Events {
		got += e.Method + " " + e.Code + ", "
		if e.KeyID != keyID || e.RequestID == "" {
			t.Errorf("event %+v", e)
		}
	}
	if got != "PauseSandbox OK, CreateSandbox RESOURCE_EXHAUSTED, CreateSandbox RESOURCE_EXHAUSTED, CreateSandbox OK, " {
		t.Errorf("the log is %s", got)
	}
}
