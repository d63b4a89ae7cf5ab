package gateway_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/coveyhq/covey/gateway/internal/meshtest"
)

// socket is a WebSocket to exec/stream.
type socket struct {
	*websocket.Conn
	t   testing.TB
	ctx context.Context
}

func (g *running) socket(sandbox string, protocols ...string) *socket {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 2*time.Minute)
	g.t.Cleanup(cancel)
	// As a browser: the key is a subprotocol, as no header can be set.
	ws, res, err := websocket.Dial(ctx, g.url+"/v1/sandboxes/"+sandbox+"/exec/stream", &websocket.DialOptions{
		Subprotocols: append(protocols, "covey.key."+meshtest.AdminKey),
	})
	if err != nil {
		g.t.Fatalf("%v (%v)", err, res)
	}
	ws.SetReadLimit(1 << 20)
	g.t.Cleanup(func() { ws.CloseNow() })
	return &socket{ws, g.t, ctx}
}

func (s *socket) send(text string) {
	s.t.Helper()
	if err := s.Write(s.ctx, websocket.MessageText, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

// frame is a message of the server, of either kind.
type frame struct {
	Started *struct {
		ProcessID string `json:"process_id"`
	}
	Output *struct {
		Stream   string
		Data     []byte
		Sequence string
	}
	Exited *struct {
		ExitCode int `json:"exit_code"`
	}
	Error *struct{ Reason, Message string }

	binary []byte
}

func (s *socket) read() (frame, error) {
	var f frame
	kind, b, err := s.Conn.Read(s.ctx)
	if err == nil && kind == websocket.MessageBinary {
		f.binary = b
	} else if err == nil {
		err = json.Unmarshal(b, &f)
	}
	return f, err
}

// next reads a message that must come.
func (s *socket) next() frame {
	s.t.Helper()
	f, err := s.read()
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

func TestAProcessIsDrivenOverAWebSocketInJSON(t *testing.T) {
	g := start(t)
	s := g.socket(g.Add())
	s.send(`{"start":{"cmd":"sh","args":["-c","read a; echo got $a; echo oops >&2; read b; exit 3"]}}`)
	if f := s.next(); f.Started == nil || f.Started.ProcessID == "" {
		t.Fatalf("first frame %+v", f)
	}
	s.send(`{"stdin":"b25lCg=="}`) // one
	out := map[string]string{}
	for len(out["OUTPUT_STREAM_STDOUT"])+len(out["OUTPUT_STREAM_STDERR"]) < len("got one\noops\n") {
		f := s.next()
		out[f.Output.Stream] += string(f.Output.Data)
	}
	if out["OUTPUT_STREAM_STDOUT"] != "got one\n" || out["OUTPUT_STREAM_STDERR"] != "oops\n" {
		t.Fatalf("output %q", out)
	}
	if err := s.Write(s.ctx, websocket.MessageBinary, []byte("two\n")); err != nil {
		t.Fatal(err)
	}
	if f := s.next(); f.Exited == nil || f.Exited.ExitCode != 3 {
		t.Fatalf("last frame %+v", f)
	}
	if _, err := s.read(); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Fatalf("closed with %v", err)
	}
}

func TestOutputCanComeAsBinaryMessages(t *testing.T) {
	g := start(t)
	s := g.socket(g.Add(), "covey.exec.v1.binary")
	s.send(`{"start":{"cmd":"sh","args":["-c","printf 'a\\377b'; exit 0"]}}`)
	s.next()
	b := s.next().binary
	if len(b) != 12 || b[0] != 1 || binary.BigEndian.Uint64(b[1:]) != 0 || string(b[9:]) != "a\xffb" {
		t.Fatalf("got %q", b)
	}
}

func TestADroppedConnectionGoesOnWithoutLosingOrRepeatingAByte(t *testing.T) {
	g := start(t)
	id := g.Add()
	s := g.socket(id, "covey.exec.v1.binary")
	s.send(`{"start":{"cmd":"sh","args":["-c","echo one; read x; echo two; echo three"],"detached":true}}`)
	process := s.next().Started.ProcessID
	got := string(s.next().binary[9:])
	s.CloseNow()
	s = g.socket(id, "covey.exec.v1.binary")
	s.send(`{"attach":{"process_id":"` + process + `","from_sequence":"4"}}`)
	s.next()
	s.send(`{"stdin":"Cg=="}`)
	for {
		f := s.next()
		if f.Exited != nil {
			break
		}
		got += string(f.binary[9:])
	}
	if got != "one\ntwo\nthree\n" {
		t.Fatalf("got %q", got)
	}
}

func TestAProcessEndsWithAConnectionThatIsClosedOrGone(t *testing.T) {
	for what, leave := range map[string]func(*socket){
		"closed": func(s *socket) { s.Close(websocket.StatusNormalClosure, "") }, "gone": func(s *socket) { s.CloseNow() },
	} {
		g := start(t)
		id := g.Add()
		s := g.socket(id)
		s.send(`{"start":{"cmd":"sleep","args":["1000"]}}`)
		s.next()
		leave(s)
		eventually(t, what+": the process ends", func() bool {
			var list struct{ Processes []struct{ Running bool } }
			g.do("GET", "/v1/sandboxes/"+id+"/processes", nil).into(t, &list)
			return len(list.Processes) == 1 && !list.Processes[0].Running
		})
	}
}

// eventually asks until it is so, for at most a minute.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(time.Minute), time.NewTicker(10*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal(what + ": not within a minute")
		}
	}
}

func TestWrongFramesAreAnsweredWithAnErrorAndACode(t *testing.T) {
	g := start(t)
	id := g.Add()
	for name, c := range map[string]struct {
		send, reason string
		code         websocket.StatusCode
	}{
		"no JSON":         {"{", "INVALID_JSON", 4400},
		"no frame":        {"{}", "INVALID_FRAME", 4400},
		"not start":       {`{"stdin":""}`, "INVALID_FIELD", 4400},
		"unknown field":   {`{"begin":{}}`, "INVALID_FIELD", 4400},
		"another sandbox": {`{"sandbox_id":"sb_x","start":{"cmd":"true"}}`, "INVALID_FIELD", 4400},
		"no such process": {`{"attach":{"process_id":"proc_no"}}`, "PROCESS_NOT_FOUND", 4404},
		// By one byte: TCP may lose the close frame to a client that still sends when the server hangs up.
		"too long":          {strings.Repeat("x", 2<<20+1), "", websocket.StatusMessageTooBig},
		"wrong after start": {`{"start":{"cmd":"sleep","args":["100"]}}|{"resize":7}`, "INVALID_FIELD", 4400},
	} {
		t.Run(name, func(t *testing.T) {
			s := g.socket(id)
			for m := range strings.SplitSeq(c.send, "|") {
				s.send(m)
			}
			f, err := s.read()
			for err == nil && f.Started != nil {
				f, err = s.read()
			}
			if c.reason != "" {
				if f.Error == nil || f.Error.Reason != c.reason {
					t.Fatalf("got %+v, %v", f, err)
				}
				_, err = s.read()
			}
			if websocket.CloseStatus(err) != c.code {
				t.Fatalf("closed with %v, want %d", err, c.code)
			}
		})
	}
}

func TestASandboxThatIsNotThereIsAnHTTPStatusAndNotACloseCode(t *testing.T) {
	g := start(t)
	a := g.do("GET", "/v1/sandboxes/sb_no/exec/stream", nil, "Upgrade", "websocket", "Connection", "keep-alive, Upgrade",
		"Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
	if p := a.problem(t); a.status != 404 || p.Reason != "SANDBOX_NOT_FOUND" {
		t.Fatalf("%d %s", a.status, a.body)
	}
}

func TestOpenSocketsEndWithTheGateway(t *testing.T) {
	g := start(t)
	s := g.socket(g.Add())
	s.send(`{"start":{"cmd":"sleep","args":["1000"],"detached":true}}`)
	s.next()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.stop()
	}()
	if _, err := s.read(); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("closed with %v", err)
	}
	<-ended
}
