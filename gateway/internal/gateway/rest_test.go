package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/gateway/internal/meshtest"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

func TestASandboxIsMadeReadUsedAndDeletedOverREST(t *testing.T) {
	g := start(t)
	var sb struct {
		ID       string `json:"id"`
		State    string `json:"state"`
		MemoryMB int    `json:"memory_mb"`
	}
	g.post("/v1/sandboxes", `{"template":"tiny","memory_mb":1024,"metadata":{"team":"blue"}}`).into(t, &sb)
	if sb.State != "STATE_RUNNING" || sb.MemoryMB != 1024 {
		t.Fatalf("made %+v", sb)
	}
	var list struct{ Sandboxes []struct{ ID string } }
	g.do("GET", "/v1/sandboxes?label=team=blue&states=STATE_RUNNING", nil).into(t, &list)
	if len(list.Sandboxes) != 1 || list.Sandboxes[0].ID != sb.ID {
		t.Fatalf("listed %+v", list)
	}
	var out struct {
		ExitCode int `json:"exit_code"`
		Stdout   string
	}
	g.post("/v1/sandboxes/"+sb.ID+"/exec", `{"cmd":"sh","args":["-c","echo $A; exit 3"],"env":{"A":"42"}}`).into(t, &out)
	if out.ExitCode != 3 || out.Stdout != "42\n" {
		t.Fatalf("exec: %+v", out)
	}
	for _, step := range []struct{ method, path, state string }{
		{"POST", "/pause", "STATE_PAUSED"}, {"POST", "/resume", "STATE_RUNNING"}, {"POST", "/ping", "STATE_RUNNING"}, {"DELETE", "", "STATE_STOPPED"},
	} {
		g.do(step.method, "/v1/sandboxes/"+sb.ID+step.path, nil).into(t, &sb)
		if sb.State != step.state {
			t.Fatalf("%s: %s", step.path, sb.State)
		}
	}
}

func TestEveryErrorHasOneShapeAndTheRightStatus(t *testing.T) {
	g := start(t)
	sb := "/v1/sandboxes/" + g.Add()
	stopped := g.Add()
	g.do("DELETE", "/v1/sandboxes/"+stopped, nil)
	g.Fail("/covey.snapshot.v1.SnapshotService/ListSnapshots", fmt.Errorf("password is hunter2"))
	json := []string{"Content-Type", "application/json"}
	for name, c := range map[string]struct {
		method, path, body string
		header             []string
		status             int
		reason, message    string
		field              string
	}{
		"no key":            {"GET", "/v1/sandboxes", "", []string{"Authorization", ""}, 401, "MISSING_API_KEY", "Bearer", ""},
		"wrong key":         {"GET", "/v1/sandboxes", "", []string{"Authorization", "Bearer cvy_no"}, 401, "INVALID_API_KEY", "", ""},
		"scope":             {"POST", "/v1/sandboxes", "{}", []string{"Authorization", "Bearer " + meshtest.ReadKey}, 403, "MISSING_SCOPE", "write", ""},
		"foreign sandbox":   {"GET", sb, "", []string{"Authorization", "Bearer " + meshtest.OtherKey}, 404, "SANDBOX_NOT_FOUND", "", ""},
		"no such route":     {"GET", "/v1/nothing", "", nil, 404, "NO_SUCH_ROUTE", "/docs", ""},
		"method":            {"PUT", sb + "/exec", "", nil, 405, "METHOD_NOT_ALLOWED", "POST", ""},
		"no JSON":           {"POST", "/v1/sandboxes", "{", json, 400, "INVALID_JSON", "unexpected", ""},
		"wrong type":        {"POST", "/v1/sandboxes", `{"vcpus":"many"}`, json, 400, "INVALID_FIELD", "vcpus", "vcpus"},
		"unknown field":     {"POST", "/v1/sandboxes", `{"memory":1}`, json, 400, "INVALID_FIELD", "memory", "memory"},
		"trailing":          {"POST", "/v1/sandboxes", `{} {}`, json, 400, "INVALID_JSON", "", ""},
		"query":             {"GET", "/v1/sandboxes?page_size=x", "", nil, 400, "INVALID_FIELD", `must be a whole number from 0 on, got "x"`, "page_size"},
		"wrong in a map":    {"POST", "/v1/sandboxes", `{"metadata":{"a":1}}`, json, 400, "INVALID_FIELD", "string", "metadata.a"},
		"query misspelt":    {"GET", "/v1/sandboxes?metadata.team=blue", "", nil, 400, "INVALID_FIELD", "known are", "metadata.team"},
		"query of an event": {"GET", "/v1/sandboxes:watch?state=STATE_RUNNING", "", nil, 400, "INVALID_FIELD", "resume_token", "state"},
		"query, no body":    {"POST", "/v1/sandboxes?timeout_sec=60", "", nil, 400, "INVALID_FIELD", "body", "timeout_sec"},
		"query where none":  {"GET", sb + "?fields=id", "", nil, 400, "INVALID_FIELD", "nothing", "fields"},
		"query of a list":   {"GET", "/v1/sandboxes?states=RUNING", "", nil, 400, "INVALID_FIELD", "RUNING", "states"},
		"illegal value":     {"POST", "/v1/sandboxes", `{"vcpus":1000}`, json, 400, "INVALID_FIELD", "1 to 8", "vcpus"},
		"no template":       {"POST", "/v1/sandboxes", `{"template":"none"}`, json, 404, "TEMPLATE_NOT_FOUND", "", ""},
		"no room":           {"POST", "/v1/sandboxes", `{"template":"full"}`, json, 429, "NO_CAPACITY", "free", ""},
		"too large":         {"POST", sb + "/exec", `{"cmd":"` + strings.Repeat("x", 8<<20) + `"}`, json, 413, "BODY_TOO_LARGE", "8388608", ""},
		"not JSON":          {"POST", "/v1/sandboxes", "a=b", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "UNSUPPORTED_MEDIA_TYPE", "application/json", ""},
		"illegal state":     {"POST", "/v1/sandboxes/" + stopped + "/pause", "{}", json, 409, "ILLEGAL_STATE", "STOPPED", ""},
		"exec in a stopped": {"POST", "/v1/sandboxes/" + stopped + "/exec", `{"cmd":"true"}`, json, 409, "NOT_RUNNING", "STOPPED", ""},
		"secrets stay in":   {"GET", "/v1/snapshots", "", nil, 500, "INTERNAL", "", ""},
		"WebSocket by GET":  {"GET", sb + "/exec/stream", "", nil, 426, "UPGRADE_REQUIRED", "", ""},
		"half an upgrade":   {"GET", sb + "/exec/stream", "", []string{"Upgrade", "websocket", "Connection", "keep-alive"}, 426, "UPGRADE_REQUIRED", "", ""},
		"no form":           {"POST", sb + "/files/write", "x", nil, 415, "UNSUPPORTED_MEDIA_TYPE", "multipart", ""},
		"no file":           {"POST", sb + "/files/read", `{"path":"nope"}`, json, 404, "FILE_NOT_FOUND", "nope", ""},
		"watch nothing":     {"GET", "/v1/sandboxes:watch?sandbox_id=sb_no", "", nil, 404, "SANDBOX_NOT_FOUND", "", ""},
		"upload parameter":  {"POST", sb + "/files/stream/write?path=x&mode=999", "x", nil, 400, "INVALID_FIELD", "0644", "mode"},
		"no UTF-8":          {"GET", "/v1/sandboxes/%80", "", nil, 400, "INVALID_URL", "UTF-8", ""},
		"no UTF-8 in query": {"GET", sb + "/files/stat?path=%ff", "", nil, 400, "INVALID_URL", "UTF-8", ""},
		"upload misspelt":   {"POST", sb + "/files/stream/write?file=x", "x", nil, 400, "INVALID_FIELD", "path", "file"},
	} {
		t.Run(name, func(t *testing.T) {
			a := g.do(c.method, c.path, strings.NewReader(c.body), c.header...)
			p := a.problem(t)
			if a.status != c.status || p.Reason != c.reason || !strings.Contains(p.Message, c.message) || p.Details["field"] != c.field {
				t.Errorf("got %d %s, want %d %s", a.status, a.body, c.status, c.reason)
			}
			if strings.Contains(string(a.body), "hunter2") {
				t.Errorf("a secret got out: %s", a.body)
			}
			if a.status == 429 && a.header.Get("Retry-After") == "" {
				t.Error("429 without Retry-After")
			}
			if allow := a.header.Get("Allow"); a.status == 405 && allow != "POST" {
				t.Errorf("405 allows %q", allow)
			}
		})
	}
}

func TestAClientCannotSayWhoseItIs(t *testing.T) {
	g := start(t)
	g.do("GET", "/v1/sandboxes", nil, "covey-tenant", "other", "Grpc-Metadata-Covey-Tenant", "other", "Grpc-Metadata-Covey-Scopes", "admin", "covey-key-id", "key_forged",
		"Authorization", "Bearer "+meshtest.ReadKey, "X-Request-Id", "mine")
	md := g.Metadata()
	if got := fmt.Sprint(md.Get("covey-tenant"), md.Get("covey-scopes"), md.Get("covey-key-id"), md.Get("covey-request-id"), md.Get("authorization")); got != "[default] [read] [key_READ] [mine] []" {
		t.Errorf("the service behind saw %s", got)
	}
}

func TestARevokedKeyEndsAtOnce(t *testing.T) {
	g := start(t)
	var made struct {
		Key    struct{ ID string }
		Secret string
	}
	g.post("/v1/keys", `{"name":"ci"}`).into(t, &made)
	with := []string{"Authorization", "", "X-API-Key", made.Secret}
	if a := g.do("GET", "/v1/sandboxes", nil, with...); a.status != http.StatusOK {
		t.Fatalf("new key: %d %s", a.status, a.body)
	}
	if a := g.do("DELETE", "/v1/keys/"+made.Key.ID, nil); a.status != http.StatusOK {
		t.Fatalf("revoke: %d %s", a.status, a.body)
	}
	if a := g.do("GET", "/v1/sandboxes", nil, with...); a.status != http.StatusUnauthorized {
		t.Fatalf("revoked key: %d %s", a.status, a.body)
	}
}

func TestTheDataPlaneOutlivesTheSandboxService(t *testing.T) {
	g := start(t)
	exec := "/v1/sandboxes/" + g.Add() + "/exec"
	if a := g.post(exec, `{"cmd":"true"}`); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	gone := status.Error(codes.Unavailable, "down")
	g.Fail("/covey.sandbox.v1.LocatorService/LocateSandbox", gone)
	g.Fail("/covey.sandbox.v1.LocatorService/Authenticate", gone)
	if a := g.post(exec, `{"cmd":"true"}`); a.status != http.StatusOK {
		t.Fatalf("without it: %d %s", a.status, a.body)
	}
}

func TestASandboxThatMovedIsFound(t *testing.T) {
	g := start(t)
	id := g.Add()
	exec := "/v1/sandboxes/" + id + "/exec"
	for i := range 3 {
		g.asks(exec, min(1, 2-i))
		if i == 0 {
			g.Move(id)
		}
	}
}

func TestASandboxThatMovedAwayFromAHostThatIsCutOffIsReachedAtTheFirstCall(t *testing.T) {
	g := start(t)
	id := g.Add()
	exec := "/v1/sandboxes/" + id + "/exec"
	if a := g.post(exec, `{"cmd":"true"}`); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	g.CutOff(t, 0)
	<-time.After(1200 * time.Millisecond) // It takes longer until a sandbox moves.
	g.Move(id)
	began := time.Now()
	if a := g.post(exec, `{"cmd":"true"}`); a.status != http.StatusOK {
		t.Fatalf("after %s: %d %s", time.Since(began), a.status, a.body)
	}
	if took := time.Since(began); took > 14*time.Second { // Keepalive needs 15 s.
		t.Errorf("it took %s", took)
	}
	// By gRPC likewise, and now at once.
	ctx, cancel := context.WithTimeout(as(t, meshtest.AdminKey), 14*time.Second)
	defer cancel()
	if _, err := guestv1.NewProcessServiceClient(g.dial()).Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "true"}); err != nil {
		t.Error(err)
	}
}

func TestWhatMovesASandboxHasItLookedForAnew(t *testing.T) {
	g := start(t)
	id := g.Add()
	sandbox := "/v1/sandboxes/" + id
	for i, between := range []string{"", "/ping", "/pause", "/resume"} {
		if between != "" {
			g.post(sandbox+between, "{}")
		}
		if between == "/pause" {
			continue
		}
		g.asks(sandbox+"/exec", map[bool]int{true: 0, false: 1}[i == 1])
	}
}

// asks makes a call, for which the gateway has to ask a number of times where the sandbox is; once more where its host has not answered for a second, as one on
// a busy machine may not.
func (g *running) asks(exec string, want int) {
	g.t.Helper()
	before, began := g.Located(), time.Now()
	if a := g.post(exec, `{"cmd":"true"}`); a.status != http.StatusOK {
		g.t.Fatalf("%d %s", a.status, a.body)
	}
	if got := g.Located() - before; got < want || got > want && time.Since(began) < time.Second {
		g.t.Errorf("it asked %d times where the sandbox is, want %d", got, want)
	}
}

func TestAPausedSandboxWakesAtItsFirstCallIfItMay(t *testing.T) {
	g := start(t)
	var sb struct{ ID string }
	for _, auto := range []bool{true, false} {
		g.post("/v1/sandboxes", fmt.Sprintf(`{"auto_resume":%v}`, auto)).into(t, &sb)
		g.post("/v1/sandboxes/"+sb.ID+"/pause", "{}")
		if a := g.do("GET", "/v1/sandboxes/"+sb.ID+"/logs", nil); a.status != http.StatusConflict {
			t.Errorf("looking at the console woke it: %d", a.status)
		}
		want := map[bool]int{true: 200, false: 409}[auto]
		if a := g.post("/v1/sandboxes/"+sb.ID+"/exec", `{"cmd":"true"}`); a.status != want {
			t.Errorf("auto_resume %v: %d %s", auto, a.status, a.body)
		}
	}
}

func TestReadinessFollowsTheServicesBehind(t *testing.T) {
	g := start(t)
	for _, ok := range []bool{true, false, true} {
		g.SetReady(ok)
		want := map[bool]int{true: 200, false: 503}[ok]
		if a := g.do("GET", "/readyz", nil, "Authorization", ""); a.status != want || !strings.Contains(string(a.body), `"covey-host":"ok"`) {
			t.Errorf("%d %s, want %d", a.status, a.body, want)
		}
	}
}

func TestDocumentationNeedsNeitherKeyNorNetwork(t *testing.T) {
	g := start(t)
	for path, want := range map[string]string{
		"/openapi.yaml": "openapi: 3.1.0", "/openapi.json": `"3.1.0"`, "/docs/": "swagger-ui", "/healthz": "ok", "/": "swagger-ui",
	} {
		a := g.do("GET", path, nil, "Authorization", "")
		if a.status != http.StatusOK || !strings.Contains(string(a.body), want) {
			t.Errorf("%s: %d, no %q", path, a.status, want)
		}
	}
	page := string(g.do("GET", "/docs/", nil).body)
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page, -1) {
		if strings.Contains(m[1], "//") {
			t.Errorf("the page takes %s from elsewhere", m[1])
		} else if a := g.do("GET", m[1], nil, "Authorization", ""); a.status != http.StatusOK || len(a.body) == 0 {
			t.Errorf("%s: %d", m[1], a.status)
		}
	}
}

func TestOperatorsAndTenantsAreServed(t *testing.T) {
	g := start(t)
	for _, c := range []struct{ method, path, body, want string }{
		{"POST", "/v1/hosts/host-a/drain", "{}", `"step":"DRAIN_STEP_RESUMED"`}, {"GET", "/v1/usage", "", `"vcpu_seconds":7.5`},
		{"GET", "/v1/quota", "", `"vcpus":8`}, {"PUT", "/v1/tenants/acme/quota", `{"vcpus":4}`, `"vcpus":4`}, {"GET", "/v1/audit?page_size=10", "", `"CreateSandbox"`},
	} {
		a := g.do(c.method, c.path, strings.NewReader(c.body))
		if a.status != 200 || !strings.Contains(strings.ReplaceAll(string(a.body), " ", ""), c.want) {
			t.Errorf("%s: %d %s", c.path, a.status, a.body)
		}
	}
	if p := g.do("POST", "/v1/hosts/none/drain", nil).problem(t); p.Reason != "HOST_NOT_FOUND" {
		t.Errorf("draining a host that is not there: %+v", p)
	}
}

func TestRequestsAreCountedByRouteAndStatus(t *testing.T) {
	g := start(t)
	g.do("GET", "/v1/sandboxes/sb_no", nil)
	g.do("GET", "/wp-login.php", nil)
	for _, want := range []string{
		`http_server_request_duration_seconds_count\{.*http_response_status_code="404",http_route="/v1/sandboxes/\{sandbox_id\}"`,
		`http_server_request_duration_seconds_count\{.*http_route="other"`,
	} {
		// A caller has its answer before the request is counted.
		eventually(t, "there is "+want, func() bool { return regexp.MustCompile(want).Match(g.do("GET", "/metrics", nil).body) })
	}
}

func TestEveryDocumentedRouteIsServed(t *testing.T) {
	g := start(t)
	var d struct{ Paths map[string]map[string]any }
	if err := yaml.Unmarshal(g.do("GET", "/openapi.yaml", nil).body, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Paths) < 30 {
		t.Fatalf("%d paths", len(d.Paths))
	}
	for path, operations := range d.Paths {
		for method := range operations {
			method := strings.ToUpper(method)
			at := regexp.MustCompile(`\{\w+\}`).ReplaceAllString(path, "x")
			if path == "/v1/sandboxes:watch" {
				at += "?sandbox_id=x" // Else it would not end.
			}
			a := g.do(method, at, nil)
			if strings.Contains(string(a.body), "NO_SUCH_ROUTE") || a.status == 405 || a.status == 501 {
				t.Errorf("%s %s: %d %s", method, path, a.status, a.body)
			}
		}
	}
}
