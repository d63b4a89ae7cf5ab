package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/gateway/internal/gateway"
	"github.com/coveyhq/covey/gateway/internal/limit"
	"github.com/coveyhq/covey/gateway/internal/meshtest"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// audited waits until the log has an event like each that is wanted: method, target, key, detail, result and count.
func (g *running) audited(want ...string) {
	g.t.Helper()
	var got []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		got = nil
		for _, e := range g.Audited() {
			got = append(got, fmt.Sprintf("%s %s %s %q %s %d", e.GetMethod(), e.GetTarget(), e.GetKeyId(), e.GetDetail(), e.GetCode(), e.GetCount()))
		}
		if !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(got, w) }) {
			return
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			g.t.Errorf("the audit log lacks %s", w)
		}
	}
	g.t.Logf("it has\n%s", strings.Join(got, "\n"))
}

func TestWhatIsDoneInsideSandboxesIsInTheAuditLogWithoutSecrets(t *testing.T) {
	g := start(t)
	id := g.Add()
	sb := "/v1/sandboxes/" + id
	g.post(sb+"/exec", `{"cmd":"true","args":["hunter2"],"env":{"PASSWORD":"hunter2"},"stdin":"aHVudGVyMg=="}`)
	g.post(sb+"/files/stream/write?path=a.txt", "hunter2", "Content-Type", "application/octet-stream")
	g.post(sb+"/files/mkdir", `{"path":"dir"}`)
	g.post(sb+"/files/move", `{"source":"a.txt","destination":"dir/b.txt"}`)
	g.post(sb+"/files/stat", `{"path":"dir/b.txt"}`)
	g.do("GET", sb+"/files/stream/read?path=dir/b.txt", nil)
	g.post(sb+"/files/remove", `{"path":"nothing"}`)
	g.post(sb+"/processes/proc_01ARZ3NDEKTSV4RRFFQ69G5FAV/signal", `{"signal":"SIGTERM"}`)
	port := program(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "inside") })
	g.token(id, port)
	for range 3 {
		g.visit("GET", g.url+sb+"/ports/"+port+"/", nil, "X-API-Key", meshtest.AdminKey)
	}
	conn := g.dial()
	if _, err := guestv1.NewProcessServiceClient(conn).Exec(as(t, meshtest.AdminKey), &guestv1.ExecRequest{SandboxId: id, Cmd: "echo", Args: []string{"hunter2"}}); err != nil {
		t.Fatal(err)
	}
	stream, err := guestv1.NewProcessServiceClient(conn).ExecStream(as(t, meshtest.AdminKey))
	if err == nil {
		err = stream.Send(&guestv1.ExecStreamRequest{SandboxId: id, Frame: &guestv1.ExecStreamRequest_Start{Start: &guestv1.ProcessStart{Cmd: "cat", Env: map[string]string{"A": "hunter2"}}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	g.audited( // The stream is there while it runs.
		"Exec "+id+` key_ADMIN "true" OK 1`, "WriteFile "+id+` key_ADMIN "a.txt" OK 1`, "MakeDirectory "+id+` key_ADMIN "dir" OK 1`,
		"MoveFile "+id+` key_ADMIN "a.txt to dir/b.txt" OK 1`, "RemoveFile "+id+` key_ADMIN "nothing" NOT_FOUND 1`,
		"SignalProcess "+id+` key_ADMIN "SIGTERM to proc_01ARZ3NDEKTSV4RRFFQ69G5FAV" NOT_FOUND 1`,
		"CreatePortToken "+id+` key_ADMIN "port `+port+`, for 60 s" OK 1`, "Connect "+id+` key_ADMIN "port `+port+`" OK 3`,
		"Exec "+id+` key_ADMIN "echo" OK 1`, "ExecStream "+id+` key_ADMIN "cat" OK 1`)
	for _, e := range g.Audited() {
		if strings.Contains(e.String(), "hunter2") || strings.Contains(e.GetMethod(), "Read") || strings.Contains(e.GetMethod(), "Stat") || e.GetRequestId() == "" || e.GetTenantId() != "default" {
			t.Errorf("the log has %v", e)
		}
	}
}

func TestRefusalsAreSummedUpInTheAuditLog(t *testing.T) {
	g := startWith(t, gateway.Config{Rates: gateway.RatesConfig{Tenant: limit.Rate{PerSecond: 0.001, Burst: 3}}})
	for range 4 {
		g.do("GET", "/v1/sandboxes", nil, "Authorization", "Bearer cvy_wxyz0000000000000000000000000000000000000000000")
		g.do("GET", "/v1/sandboxes", nil, "Authorization", "")
	}
	_, err := sandboxv1.NewSandboxServiceClient(g.dial()).ListSandboxes(as(t, "a secret of another kind"), &sandboxv1.ListSandboxesRequest{})
	if status.Code(err) != codes.Unauthenticated {
		t.Fatal(err)
	}
	for range 2 {
		g.do("DELETE", "/v1/sandboxes/"+g.Add(), nil, "Authorization", "Bearer "+meshtest.ReadKey)
	}
	for range 3 {
		g.do("GET", "/v1/sandboxes", nil, "Authorization", "Bearer "+meshtest.OtherKey)
	}
	g.do("GET", "/v1/sandboxes", nil, "Authorization", "Bearer "+meshtest.OtherKey)
	g.audited(`GET /v1/sandboxes   "key cvy_wxyz..., from 127.0.0.1" UNAUTHENTICATED 4`, `GET /v1/sandboxes   "no key, from 127.0.0.1" UNAUTHENTICATED 4`,
		`ListSandboxes   "key not like a key, from 127.0.0.1" UNAUTHENTICATED 1`, `DeleteSandbox  key_READ "" PERMISSION_DENIED 2`,
		`GET /v1/sandboxes  key_OTHER "" RESOURCE_EXHAUSTED 1`)
}

func TestCallsThatChangeRegistryOrSchedulerAreBegunAndEndedInTheLogOrRefused(t *testing.T) {
	g := start(t)
	conn := g.dial()
	hosts, snapshots := schedulerv1.NewHostsServiceClient(conn), snapshotv1.NewSnapshotServiceClient(conn)
	if _, err := hosts.CordonHost(as(t, meshtest.AdminKey), &schedulerv1.CordonHostRequest{HostId: "host-a", Cordoned: new(true)}); err != nil {
		t.Fatal(err)
	}
	g.do("DELETE", "/v1/snapshots/nothing", nil)
	var got []string
	for _, e := range g.Audited() { // At once: the caller has waited for it.
		got = append(got, fmt.Sprint(e.GetMethod(), " ", e.GetTarget(), " ", e.GetDetail(), " ", e.GetCode()))
	}
	if want := []string{"CordonHost host-a cordoned true OK", "DeleteSnapshot nothing  NOT_FOUND"}; !slices.Equal(got, want) {
		t.Errorf("the log has %q, want %q", got, want)
	}
	g.Fail(sandboxv1.AuditService_WriteAuditEvents_FullMethodName, status.Error(codes.Unavailable, "gone"))
	a := g.do("DELETE", "/v1/snapshots/nothing", nil)
	if p := a.problem(t); a.status != 503 || p.Reason != "AUDIT_UNAVAILABLE" {
		t.Errorf("without a log: %d %s", a.status, a.body)
	}
	if _, err := snapshots.ListSnapshots(as(t, meshtest.AdminKey), &snapshotv1.ListSnapshotsRequest{}); err != nil {
		t.Errorf("reading without a log: %v", err)
	}
	// What is used meanwhile is written later.
	id, failed := g.Add(), g.Failed(sandboxv1.AuditService_WriteAuditEvents_FullMethodName)
	g.post("/v1/sandboxes/"+id+"/exec", `{"cmd":"true"}`)
	eventually(t, "it is tried to write it", func() bool { return g.Failed(sandboxv1.AuditService_WriteAuditEvents_FullMethodName) > failed })
	g.Fail(sandboxv1.AuditService_WriteAuditEvents_FullMethodName, nil)
	g.audited("Exec " + id + ` key_ADMIN "true" OK 1`)
}
