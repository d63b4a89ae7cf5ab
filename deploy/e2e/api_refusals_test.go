package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"mime/multipart"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// legal are values for fields that requests must have, by the field's name.
var legal = map[string]string{
	"path": `"/tmp/x"`, "source": `"/tmp/x"`, "destination": `"/tmp/y"`, "name": `"a-name"`, "cmd": `"true"`, "process_id": `"proc_01ARZ3NDEKTSV4RRFFQ69G5FAV"`,
	"signal": `"SIGTERM"`, "port": `80`, "header": `{"path":"/tmp/x"}`, "start": `{"cmd":"true"}`, "count": `1`,
}

// filled is a method's request with legal values, and the ids given by field.
func filled(t *testing.T, m protoreflect.MethodDescriptor, ids map[string]string) proto.Message {
	t.Helper()
	values := map[string]json.RawMessage{}
	for i := range m.Input().Fields().Len() {
		name := string(m.Input().Fields().Get(i).Name())
		if v, ok := legal[name]; ok && (name != "signal" || m.Name() == "SignalProcess") {
			values[name] = json.RawMessage(v)
		}
		if v, ok := ids[name]; ok {
			values[name] = json.RawMessage(fmt.Sprintf("%q", v))
		}
	}
	b, err := json.Marshal(values)
	in := fresh(t, m.Input())
	if err == nil {
		err = protojson.Unmarshal(b, in)
	}
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// filters are requests in which an id only narrows what is the caller's own.
var filters = map[string]bool{"ListAuditEvents": true}

func TestNoMethodAndNoRouteReachesWhatAnotherTenantHas(t *testing.T) {
	c := api(t)
	sb := create(t, c.ctx, small())
	snap := template(t, c.ctx, sb.GetId(), "answers-own")
	_, key := newKey(t, c.ctx, "", "read")
	other, _ := newKey(t, c.ctx, "answers-foreign", "read", "write", "admin")
	// The template's making has touched nothing since; its version tells whether anything will.
	before := get(t, c.ctx, sb.GetId())
	ids := map[string]string{"sandbox_id": sb.GetId(), "snapshot_id": snap.GetId(), "key_id": key}
	reasons := map[string]string{"sandbox_id": "SANDBOX_NOT_FOUND", "snapshot_id": "SNAPSHOT_NOT_FOUND", "key_id": "KEY_NOT_FOUND"}
	foreign := as(c.ctx, other)
	n := 0
	for _, m := range publicMethods(t, c.ctx) {
		for field, reason := range reasons {
			if m.Input().Fields().ByName(protoreflect.Name(field)) == nil || filters[string(m.Name())] {
				continue
			}
			n++
			t.Run("gRPC "+string(m.Name())+" "+field, func(t *testing.T) {
				refused(t, send(t, foreign, m, filled(t, m, ids)), reason)
			})
		}
	}
	for _, name := range []string{snap.GetId(), "answers-own"} {
		_, err := s.sandboxes.CreateSandbox(foreign, &sandboxv1.CreateSandboxRequest{Template: name})
		refused(t, err, "TEMPLATE_NOT_FOUND")
	}
	for _, route := range c.documentedRoutes() {
		for field, reason := range reasons {
			if !strings.Contains(route, "{"+field+"}") {
				continue
			}
			n++
			t.Run(route, func(t *testing.T) { (caller{t, c.ctx}).asStranger(route, ids, other, reason) })
		}
	}
	if n < 50 {
		t.Errorf("only %d methods and routes were tried", n)
	}
	if now := get(t, c.ctx, sb.GetId()); now.GetState() != before.GetState() || now.GetVersion() != before.GetVersion() {
		t.Errorf("it was %v and is %v", before, now)
	}
	if now, err := s.snapshots.GetSnapshot(c.ctx, &snapshotv1.GetSnapshotRequest{SnapshotId: snap.GetId()}); err != nil || now.GetSnapshot().GetName() != "answers-own" {
		t.Errorf("the snapshot is %v, %v", now, err)
	}
	keys, err := s.keys.ListKeys(c.ctx, &sandboxv1.ListKeysRequest{})
	if err != nil || !slices.ContainsFunc(keys.GetKeys(), func(k *sandboxv1.Key) bool { return k.GetId() == key && k.GetRevokeTime() == nil }) {
		t.Errorf("the key was revoked: %v", err)
	}
}

// bodies are bodies of routes, by how those end.
var bodies = map[string]string{
	"/rename": `{"name":"x"}`, "/exec": `{"cmd":"true"}`, "/files/mkdir": `{"path":"/x"}`, "/files/remove": `{"path":"/x"}`, "/files/read": `{"path":"/x"}`,
	"/files/stream/read": `{"path":"/x"}`, "/files/move": `{"source":"/x","destination":"/y"}`, "/files/stream/write": "bytes",
}

// asStranger calls a route with ids of another tenant.
func (c caller) asStranger(route string, ids map[string]string, key, reason string) {
	c.t.Helper()
	verb, path, _ := strings.Cut(route, " ")
	for field, id := range ids {
		path = strings.ReplaceAll(path, "{"+field+"}", id)
	}
	path = strings.NewReplacer("{port}", "80", "{path}", "x", "{process_id}", "proc_01ARZ3NDEKTSV4RRFFQ69G5FAV").Replace(path)
	header := []string{"Authorization", "Bearer " + key}
	body := ""
	switch {
	case strings.HasSuffix(path, "/exec/stream"):
		header = append(header, upgrade...)
	case strings.HasSuffix(path, "/files/write"):
		var form bytes.Buffer
		m := multipart.NewWriter(&form)
		if w, err := m.CreateFormFile("file", "x"); err == nil {
			w.Write([]byte("bytes"))
		}
		m.Close()
		body, header = form.String(), append(header, "Content-Type", m.FormDataContentType())
	case verb == "POST":
		body = "{}"
		for end, b := range bodies {
			if strings.HasSuffix(path, end) {
				body = b
			}
		}
	}
	if strings.Contains(path, "/files/") && (verb == "GET" || strings.HasSuffix(path, "/stream/write")) {
		path += "?path=/x"
	}
	c.refused(reason, verb, path, body, header...)
}

// upgrade are the headers that ask for a WebSocket.
var upgrade = []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}

func TestAWebSocketThatCannotBeOpenedIsAnsweredByHTTP(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny","memory_mb":128}`)
	reader, _ := newKey(t, c.ctx, "", "read")
	path := sb + "/exec/stream"
	c.refused("MISSING_API_KEY", "GET", path, "", append([]string{"Authorization", ""}, upgrade...)...)
	c.refused("INVALID_API_KEY", "GET", path, "", append([]string{"Authorization", "Bearer cvy_nobody"}, upgrade...)...)
	c.refused("MISSING_SCOPE", "GET", path, "", append([]string{"Authorization", "Bearer " + reader}, upgrade...)...)
	c.refused("UPGRADE_REQUIRED", "GET", path, "", "Upgrade", "websocket")
	c.refused("SANDBOX_NOT_FOUND", "GET", "/v1/sandboxes/sb_01ARZ3NDEKTSV4RRFFQ69G5FAV/exec/stream", "", upgrade...)
	c.refused("INVALID_FIELD", "GET", "/v1/sandboxes/x/exec/stream", "", upgrade...)
	pause(t, c.ctx, id)
	c.refused("SANDBOX_NOT_RUNNING", "GET", path, "", upgrade...)
	c.refused("SANDBOX_NOT_RUNNING", "GET", sb+"/ports/80/", "")
}

func TestWhatGoesWrongOnTheWayToAPort(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny","memory_mb":128}`)
	sh(t, c.ctx, id, "setsid nc -ll -p 8002 -e echo this is no HTTP </dev/null >/dev/null 2>&1 & until netstat -tln | grep -q :8002; do sleep 0.05; done")
	c.refused("PORT_CLOSED", "GET", sb+"/ports/8001/", "")
	c.refused("BAD_ANSWER", "GET", sb+"/ports/8002/", "")
	c.refused("INVALID_FIELD", "GET", sb+"/ports/0/", "")
	c.refused("METHOD_NOT_ALLOWED", "TRACE", sb+"/ports/8002/", "")
	c.refused("MISSING_API_KEY", "GET", sb+"/ports/8002/", "", "Authorization", "")
	token, _ := c.ok("POST", sb+"/ports/8001/token", "{}")["token"].(string)
	c.refused("INVALID_PORT_TOKEN", "GET", sb+"/ports/8002/", "", "Authorization", "", "X-Covey-Port-Token", token)
	c.refused("INVALID_PORT_TOKEN", "GET", sb+"/ports/8001/", "", "Authorization", "", "X-Covey-Port-Token", token+"x")
	c.refused("PORT_CLOSED", "GET", sb+"/ports/8001/", "", "Authorization", "", "X-Covey-Port-Token", token)
	st, err := guestv1.NewPortServiceClient(s.conn).Connect(c.ctx)
	if err == nil {
		err = st.Send(&guestv1.ConnectRequest{SandboxId: id, Port: 8001})
	}
	if err == nil {
		_, err = st.Recv()
	}
	refused(t, err, "PORT_CLOSED")
}

func TestWhatIsNotThereIsSaid(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny","memory_mb":128}`)
	sh(t, c.ctx, id, "mkdir -p /tmp/d/e; echo x >/tmp/f; echo x >/tmp/g; chmod 600 /tmp/g")
	c.refused("HOST_UNKNOWN", "POST", "/v1/hosts/host-z/cordon", `{"cordoned":true}`)
	c.refused("PROCESS_NOT_FOUND", "POST", sb+"/processes/proc_no/signal", `{"signal":"SIGTERM"}`)
	c.refused("FILE_NOT_FOUND", "GET", sb+"/files/stat?path=/no", "")
	c.refused("FILE_NOT_FOUND", "POST", sb+"/files/read", `{"path":"/no"}`)
	c.refused("IS_A_DIRECTORY", "POST", sb+"/files/read", `{"path":"/tmp"}`)
	c.refused("NOT_A_DIRECTORY", "GET", sb+"/files/list?path=/tmp/f", "")
	c.refused("DIRECTORY_NOT_EMPTY", "POST", sb+"/files/remove", `{"path":"/tmp/d","user":"root"}`)
	c.refused("FILE_EXISTS", "POST", sb+"/files/move", `{"source":"/tmp/f","destination":"/tmp/g","user":"root"}`)
	c.refused("PERMISSION_DENIED", "POST", sb+"/files/read", `{"path":"/tmp/g"}`)
	c.refused("PERMISSION_DENIED", "POST", sb+"/files/stream/write?path=/etc/x", "bytes")
	// The first event there ever was is long forgotten, or never was.
	if e := c.watchFrom("MQ"); e != "INVALID_FIELD" && e != "RESUME_TOKEN_EXPIRED" {
		t.Errorf("an old resume token: %s", e)
	}
}

// watchFrom is the reason with which a watch from a token ends.
func (c caller) watchFrom(token string) string {
	c.t.Helper()
	_, b := c.call("GET", "/v1/sandboxes:watch?resume_token="+token, "")
	var p struct{ Error problem }
	if err := json.Unmarshal([]byte(b), &p); err != nil {
		c.t.Fatalf("%q: %v", b, err)
	}
	return p.Error.Reason
}

func TestNoRequestIDIsTakenForAnotherRequest(t *testing.T) {
	c := api(t)
	used := fmt.Sprintf("used-%d", time.Now().UnixNano())
	q := small()
	q.RequestId = used
	sb := create(t, c.ctx, q)
	before := get(t, c.ctx, sb.GetId())
	n := 0
	for _, m := range publicMethods(t, c.ctx) {
		if m.Input().Fields().ByName("request_id") == nil {
			continue
		}
		n++
		// Of CreateSandbox this is the same method with other content.
		refused(t, send(t, c.ctx, m, filled(t, m, map[string]string{"sandbox_id": sb.GetId(), "request_id": used})), "REQUEST_ID_REUSED")
	}
	if n < 6 {
		t.Errorf("only %d methods have a request_id", n)
	}
	c.refused("REQUEST_ID_REUSED", "POST", "/v1/sandboxes", `{"template":"tiny","memory_mb":256,"request_id":"`+used+`"}`)
	c.refused("REQUEST_ID_REUSED", "POST", "/v1/sandboxes/"+sb.GetId()+"/pause", `{"request_id":"`+used+`"}`)
	if now := get(t, c.ctx, sb.GetId()); now.GetVersion() != before.GetVersion() || now.GetState() != before.GetState() {
		t.Errorf("it was %v and is %v", before, now)
	}
}

func TestEveryQuotaIsKeptAndSaysWhatIsOver(t *testing.T) {
	c := api(t)
	const tenant = "answers-quotas"
	secret, _ := newKey(t, c.ctx, tenant, "read", "write")
	own := as(c.ctx, secret)
	limits := func(l string) { c.ok("PUT", "/v1/tenants/"+tenant+"/quota", l) }
	limits(`{}`)
	res, err := s.sandboxes.CreateSandbox(own, &sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 128})
	if err != nil {
		t.Fatal(err)
	}
	id := res.GetSandbox().GetId()
	snap := ""
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(as(context.Background(), secret), overrun*time.Minute)
		defer cancel()
		if _, err := s.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: id}); err != nil {
			t.Error(err)
		}
		if _, err := s.snapshots.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: snap}); err != nil {
			t.Error(err)
		}
	})
	made, err := s.sandboxes.CreateSnapshot(own, &sandboxv1.CreateSnapshotRequest{SandboxId: id, Name: "first"})
	if err != nil {
		t.Fatal(err)
	}
	snap = made.GetSnapshot().GetId()
	create, fork := func() error {
		_, err := s.sandboxes.CreateSandbox(own, &sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 128})
		return err
	}, func() error {
		_, err := s.sandboxes.ForkSandbox(own, &sandboxv1.ForkSandboxRequest{SandboxId: id})
		return err
	}
	second := func() error {
		_, err := s.sandboxes.CreateSnapshot(own, &sandboxv1.CreateSnapshotRequest{SandboxId: id, Name: "second"})
		return err
	}
	resume := func() error {
		_, err := s.sandboxes.ResumeSandbox(own, &sandboxv1.ResumeSandboxRequest{SandboxId: id})
		return err
	}
	over := func(quota, limit string, calls ...func() error) {
		t.Helper()
		limits(limit)
		for _, call := range calls {
			err := call()
			refused(t, err, "QUOTA_EXCEEDED")
			if !strings.Contains(status.Convert(err).Message(), "quota "+quota+" of tenant "+tenant) {
				t.Errorf("%s: %v", quota, err)
			}
		}
	}
	over("sandboxes", `{"sandboxes":1}`, create, fork)
	e := c.refused("QUOTA_EXCEEDED", "POST", "/v1/sandboxes", `{"template":"tiny"}`, "Authorization", "Bearer "+secret)
	if want := map[string]string{"quota": "sandboxes", "limit": "1", "in_use": "1", "asked": "1", "tenant_id": tenant}; !maps.Equal(e.Details, want) {
		t.Errorf("details %v", e.Details)
	}
	over("vcpus", `{"vcpus":1}`, create, fork)
	over("memory_mb", `{"memory_mb":200}`, create, fork)
	over("snapshots", `{"snapshots":1}`, second)
	over("snapshot_bytes", `{"snapshot_bytes":1}`, second)
	// What pausing gives back, resuming takes.
	if _, err := s.sandboxes.PauseSandbox(own, &sandboxv1.PauseSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	over("memory_mb", `{"memory_mb":100}`, resume)
	list, err := s.sandboxes.ListSandboxes(own, &sandboxv1.ListSandboxesRequest{})
	if err != nil || len(list.GetSandboxes()) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

// raw sends bytes as they are in place of a message.
type raw struct{}

func (raw) Name() string { return "proto" }
func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (raw) Unmarshal(_ mem.BufferSlice, _ any) error { return nil }

func TestMessagesThatAreTooLargeOrNoneAreRefused(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny","memory_mb":128}`)
	n := 0
	large := `{"x":"` + strings.Repeat("x", 8<<20) + `"}`
	for _, route := range c.documentedRoutes() {
		verb, path, _ := strings.Cut(route, " ")
		if verb != "POST" && verb != "PUT" || strings.HasSuffix(path, "/write") || strings.Contains(path, "{path}") {
			continue
		}
		n++
		path = inBraces.ReplaceAllString(strings.NewReplacer("{sandbox_id}", id, "{port}", "80").Replace(path), "x")
		c.refused("BODY_TOO_LARGE", verb, path, large)
	}
	if n < 15 {
		t.Errorf("only %d routes with a body", n)
	}
	var form bytes.Buffer
	m := multipart.NewWriter(&form)
	m.WriteField("path", strings.Repeat("x", 9<<10))
	m.Close()
	c.refused("INVALID_FIELD", "POST", sb+"/files/write", form.String(), "Content-Type", m.FormDataContentType())
	c.refused("UNSUPPORTED_MEDIA_TYPE", "POST", sb+"/files/write", "x")
	c.refused("UNSUPPORTED_MEDIA_TYPE", "POST", sb+"/exec", "x", "Content-Type", "text/plain")

	_, err := s.sandboxes.CreateSandbox(c.ctx, &sandboxv1.CreateSandboxRequest{Template: strings.Repeat("x", 17<<20)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a large message: %v", err)
	}
	_, err = s.processes.Exec(c.ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "true", Stdin: make([]byte, 17<<20)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a large message for a guest: %v", err)
	}
	// Field 2 is text that is no UTF-8, of a message whose sandbox can be read.
	wrong := append([]byte{0x0a, byte(len(id))}, id+"\x12\x01\xff"...)
	for _, method := range []string{"guest.ProcessService/Exec", "guest.FileService/ReadFile"} {
		refused(t, c.rawMessage(method, wrong), "INVALID_MESSAGE")
	}
	refused(t, c.rawMessage("guest.ProcessService/Exec", wrong[:5]), "INVALID_FIELD")
	for _, method := range []string{"sandbox.SandboxService/GetSandbox", "sandbox.SandboxService/WatchSandboxes"} {
		if err := c.rawMessage(method, wrong[:5]); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "unmarshal") {
			t.Errorf("%s: %v", method, err)
		}
	}
	c.refused("INVALID_URL", "GET", "/v1/sandboxes/%ff", "")
}

// rawMessage sends bytes as they are as a call's message, and returns its error.
func (c caller) rawMessage(method string, b []byte) error {
	st, err := s.conn.NewStream(c.ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+full(method), grpc.ForceCodecV2(raw{}))
	if err == nil {
		err = st.SendMsg(b)
	}
	if err == nil {
		err = st.CloseSend()
	}
	if err == nil {
		err = st.RecvMsg(nil)
	}
	return err
}
