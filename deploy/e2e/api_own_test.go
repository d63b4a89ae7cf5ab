package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// The rows of the table that are more than a message and its answer, by transport.

func (w *world) path() string { return w.fill("/v1/sandboxes/{sandbox}") }

// echo reads a line and ends with code 3; left is a process that goes on alone.
var echo, left = &guestv1.ProcessStart{Cmd: "sh", Args: []string{"-c", "read l; echo got $l; exit 3"}}, &guestv1.ProcessStart{Cmd: "sleep", Args: []string{"1000"}, Detached: true}

func (w *world) execByWebSocket() {
	ws := w.socket(w.path(), `{"start":{"cmd":"sh","args":["-c","read l; echo got $l; exit 3"]}}`)
	if err := ws.Write(w.ctx, websocket.MessageBinary, []byte("it\n")); err != nil {
		w.t.Fatal(err)
	}
	var out []byte
	for {
		f, data := receive(w.t, w.ctx, ws)
		if out = append(out, data...); f.Exited == nil {
			continue
		}
		if string(out) != "got it\n" || f.Exited.ExitCode != 3 {
			w.t.Errorf("%q, %v", out, f.Exited)
		}
		break
	}
	ws = w.socket(w.path(), `{"start":{"cmd":"sleep","args":["1000"],"detached":true}}`)
	f, _ := receive(w.t, w.ctx, ws)
	w.kept["process"] = f.Started.ProcessID
	if err := ws.Write(w.ctx, websocket.MessageText, []byte(`{"detach":{}}`)); err != nil {
		w.t.Fatal(err)
	}
	if _, _, err := ws.Read(w.ctx); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		w.t.Error(err)
	}
}

func (w *world) execByStream() {
	st, _ := stream(w.t, w.ctx, w.kept["sandbox"], echo)
	if err := st.Send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: []byte("it\n")}}); err != nil {
		w.t.Fatal(err)
	}
	var out []byte
	exited, err := drain(st, func(o *guestv1.Output) { out = append(out, o.GetData()...) })
	if err != nil || string(out) != "got it\n" || exited.GetExitCode() != 3 {
		w.t.Errorf("%q, %v, %v", out, exited, err)
	}
	st, w.kept["process"] = stream(w.t, w.ctx, w.kept["sandbox"], left)
	if err := st.Send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Detach{Detach: &guestv1.Detach{}}}); err != nil {
		w.t.Fatal(err)
	}
	if _, err := drain(st, func(*guestv1.Output) {}); err != nil {
		w.t.Error(err)
	}
}

// program runs covey and returns its output; it must end with a code.
func (w *world) program(code int, stdin string, args ...string) string {
	w.t.Helper()
	for i := range args {
		args[i] = w.fill(args[i])
	}
	cmd := covey(w.t, w.ctx, s.key, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != code {
		w.t.Fatalf("covey %q: %v: %s%s", args, err, out, stderr.Bytes())
	}
	return string(out)
}

func (w *world) execByProgram() {
	if out := w.program(3, "it\n", "exec", "{sandbox}", "--", "sh", "-c", "read l; echo got $l; exit 3"); out != "got it\n" {
		w.t.Errorf("%q", out)
	}
	w.kept["process"] = strings.TrimSpace(w.program(0, "", "exec", "-d", "{sandbox}", "--", "sleep", "1000"))
}

func (w *world) writeByHTTP() {
	var form bytes.Buffer
	m := multipart.NewWriter(&form)
	m.WriteField("path", "/tmp/d/form")
	part, err := m.CreateFormFile("file", "x")
	if err != nil {
		w.t.Fatal(err)
	}
	part.Write([]byte("form"))
	m.Close()
	if res := w.open("POST", w.path()+"/files/write", &form, "Content-Type", m.FormDataContentType()); res.StatusCode != 200 {
		b, _ := io.ReadAll(res.Body)
		w.t.Errorf("files/write: %d %s", res.StatusCode, b)
	}
	w.ok("POST", w.path()+"/files/remove", `{"path":"/tmp/d/form"}`)
	if status, b := w.call("POST", w.path()+"/files/stream/write?path=/tmp/d/a&mode=0600", "abc", "Content-Type", ""); status != 200 {
		w.t.Errorf("files/stream/write: %d %s", status, b)
	}
}

func (w *world) writeByStream() {
	st, err := s.files.WriteFile(w.ctx)
	if err == nil {
		err = st.Send(&guestv1.WriteFileRequest{SandboxId: w.kept["sandbox"], Header: &guestv1.WriteFileHeader{Path: "/tmp/d/a"}, Data: []byte("abc")})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if res, err := st.CloseAndRecv(); err != nil || res.GetWrittenBytes() != 3 {
		w.t.Errorf("%v, %v", res, err)
	}
}

func (w *world) writeByProgram() { w.program(0, "abc", "cp", "-", "{sandbox}:/tmp/d/a") }

func (w *world) readByHTTP() {
	for _, r := range []struct{ verb, path, body string }{
		{"POST", "/files/read", `{"path":"/tmp/d/a","offset":1}`}, {"POST", "/files/stream/read", `{"path":"/tmp/d/a","offset":1}`},
		{"GET", "/files/stream/read?path=/tmp/d/a&offset=1", ""},
	} {
		if status, got := w.call(r.verb, w.path()+r.path, r.body); status != 200 || got != "bc" {
			w.t.Errorf("%s %s: %d %q", r.verb, r.path, status, got)
		}
	}
}

func (w *world) readByStream() {
	if got, err := read(w.ctx, &guestv1.ReadFileRequest{SandboxId: w.kept["sandbox"], Path: "/tmp/d/a", Offset: 1}); err != nil || string(got) != "bc" {
		w.t.Errorf("%q, %v", got, err)
	}
}

func (w *world) readByProgram() {
	if out := w.program(0, "", "cp", "{sandbox}:/tmp/d/a", "-"); out != "abc" {
		w.t.Errorf("%q", out)
	}
}

// listen starts a server in the guest.
func (w *world) listen() {
	w.t.Helper()
	if status, b := w.call("POST", w.path()+"/files/stream/write?path=/tmp/serve", serveLine, "Content-Type", ""); status != 200 {
		w.t.Fatalf("%d %s", status, b)
	}
	sh(w.t, w.ctx, w.kept["sandbox"], "setsid nc -ll -p 8000 -e sh /tmp/serve </dev/null >/dev/null 2>&1 & until netstat -tln | grep -q :8000; do sleep 0.05; done")
}

func (w *world) portByHTTP() {
	w.listen()
	token, _ := w.ok("POST", w.path()+"/ports/8000/token", `{"ttl_sec":60}`)["token"].(string)
	for _, verb := range []string{"GET", "POST"} {
		if status, b := w.call(verb, w.path()+"/ports/8000/x", "", "Authorization", "", "X-Covey-Port-Token", token); status != 200 || b != verb+" /x HTTP/1.1" {
			w.t.Errorf("%s: %d %q", verb, status, b)
		}
	}
}

func (w *world) portByStream() {
	w.listen()
	st, err := guestv1.NewPortServiceClient(s.conn).Connect(w.ctx)
	if err == nil {
		err = st.Send(&guestv1.ConnectRequest{SandboxId: w.kept["sandbox"], Port: 8000})
	}
	if err == nil {
		_, err = st.Recv()
	}
	if err == nil {
		err = errors.Join(st.Send(&guestv1.ConnectRequest{Data: []byte("GET /x HTTP/1.1\r\n\r\n")}), st.CloseSend())
	}
	var got []byte
	for err == nil {
		var m *guestv1.ConnectResponse
		m, err = st.Recv()
		got = append(got, m.GetData()...)
	}
	if !errors.Is(err, io.EOF) || !bytes.HasSuffix(got, []byte("\r\n\r\nGET /x HTTP/1.1")) {
		w.t.Errorf("%q, %v", got, err)
	}
}

func (w *world) portByProgram() {
	w.listen()
	var made struct {
		PathURL string `json:"path_url"`
	}
	if err := json.Unmarshal([]byte(w.program(0, "", "--json", "port", "{sandbox}", "8000")), &made); err != nil {
		w.t.Fatal(err)
	}
	res, err := http.Get(made.PathURL)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || !strings.HasPrefix(string(b), "GET / HTTP") {
		w.t.Errorf("%q, %v", b, err)
	}
	forwarded(w.t, w.ctx, w.kept["sandbox"])
}

// consoleLine is what the guest is to write.
const consoleLine = "a line on the console"

// logged has the guest write a line to its console, with which a restored one has nothing yet, and waits until it is read.
func (w *world) logged(read func() string) {
	w.t.Helper()
	sh(w.t, w.ctx, w.kept["sandbox"], "echo "+consoleLine+" >/dev/console")
	eventually(w.t, 5*time.Second, "the console has the line", func() bool { return strings.Contains(read(), consoleLine) })
}

func (w *world) logsByHTTP() {
	w.logged(func() string {
		_, log := w.call("GET", w.path()+"/logs?tail_bytes=1000", "")
		return log
	})
}

func (w *world) logsByStream() {
	w.logged(func() string {
		st, err := s.sandboxes.ReadSandboxLogs(w.ctx, &sandboxv1.ReadSandboxLogsRequest{SandboxId: w.kept["sandbox"]})
		return w.all(readAll(st.Recv, err))
	})
}

func (w *world) consoleByStream() {
	w.logged(func() string {
		st, err := hostv1.NewHostServiceClient(s.conn).ReadConsole(w.ctx, &hostv1.ReadConsoleRequest{SandboxId: w.kept["sandbox"]})
		return w.all(readAll(st.Recv, err))
	})
}

func (w *world) logsByProgram() {
	w.logged(func() string { return w.program(0, "", "logs", "--tail", "1000", "{sandbox}") })
}

func (w *world) all(b []byte, err error) string {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// readAll joins the bytes of a stream's messages.
func readAll[M interface{ GetData() []byte }](recv func() (M, error), err error) (all []byte, _ error) {
	for err == nil {
		var m M
		m, err = recv()
		all = append(all, m.GetData()...)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return all, err
}

func (w *world) health() {
	w.check(w.ok("GET", "/healthz", ""), "status=ok")
	w.check(w.ok("GET", "/readyz", ""), "ready=true")
}

func (w *world) healthByGRPC() {
	h, err := healthpb.NewHealthClient(s.conn).Check(context.WithoutCancel(w.ctx), &healthpb.HealthCheckRequest{})
	if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		w.t.Errorf("%v, %v", h, err)
	}
}

func (w *world) pages() {
	for _, page := range []struct{ path, key, has string }{
		{"/openapi.yaml", "", "openapi: 3.1.0"}, {"/openapi.json", "", `"openapi":"3.1.0"`}, {"/docs/", "", "<title>"}, {"/metrics", "Bearer " + s.key, "http_server_request_duration_seconds"},
	} {
		if status, b := w.call("GET", page.path, "", "Authorization", page.key); status != 200 || !strings.Contains(b, page.has) {
			w.t.Errorf("%s: %d %.200s", page.path, status, b)
		}
	}
}
