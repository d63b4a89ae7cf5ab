package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// ending reads a WebSocket until it is closed, and returns the reason of its last error and the close code.
func ending(t *testing.T, ctx context.Context, ws *websocket.Conn) (reason string, closed websocket.StatusCode) {
	t.Helper()
	for {
		_, b, err := ws.Read(ctx)
		if err != nil {
			return reason, websocket.CloseStatus(err)
		}
		var f frameOut
		if json.Unmarshal(b, &f) == nil && f.Error != nil {
			reason = f.Error.Reason
		}
	}
}

func TestAMalformedFrameEndsAnExecStreamWithTheReason(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny","memory_mb":128}`)
	const sleeping = `{"start":{"cmd":"sleep","args":["1000"]}}`
	for name, f := range map[string]struct {
		send, reason string
	}{
		"no JSON":            {`{"start":`, "INVALID_JSON"},
		"not UTF-8":          {"{\"start\":{\"cmd\":\"\xff\"}}", "INVALID_JSON"},
		"nothing in it":      {`{}`, "INVALID_FRAME"},
		"not start first":    {`{"resize":{"rows":1,"cols":1}}`, "INVALID_FIELD"},
		"unknown field":      {`{"begin":{}}`, "INVALID_FIELD"},
		"another sandbox":    {`{"sandbox_id":"sb_x","start":{"cmd":"true"}}`, "INVALID_FIELD"},
		"no such process":    {`{"attach":{"process_id":"proc_no"}}`, "PROCESS_NOT_FOUND"},
		"wrong type later":   {sleeping + "|" + `{"resize":7}`, "INVALID_FIELD"},
		"no terminal":        {sleeping + "|" + `{"resize":{"rows":1,"cols":1}}`, "NO_TERMINAL"},
		"unknown signal":     {sleeping + "|" + `{"signal":"SIGNOPE"}`, "INVALID_FIELD"},
		"start after start":  {sleeping + "|" + sleeping, "INVALID_FIELD"},
		"binary before that": {"", "INVALID_FIELD"},
	} {
		t.Run(name, func(t *testing.T) {
			c := caller{t, c.ctx}
			first, more, two := strings.Cut(f.send, "|")
			kind := websocket.MessageText
			if first == "" {
				kind = websocket.MessageBinary
			}
			ws := c.socketOpen(s.key, sb)
			err := ws.Write(c.ctx, kind, []byte(first))
			if two && err == nil {
				err = ws.Write(c.ctx, websocket.MessageText, []byte(more))
			}
			if err != nil {
				t.Fatal(err)
			}
			want := documentedAnswers()[f.reason].status
			if reason, closed := ending(t, c.ctx, ws); reason != f.reason || int(closed) != 4000+want {
				t.Errorf("%s, closed with %d; want %s, %d", reason, closed, f.reason, 4000+want)
			}
		})
	}
	t.Run("too long", func(t *testing.T) {
		ws := caller{t, c.ctx}.socket(sb, `{"x":"`+strings.Repeat("x", 2<<20-7)+`"}`) // By one byte: TCP may lose the close frame to a client that still sends.
		if _, closed := ending(t, c.ctx, ws); closed != websocket.StatusMessageTooBig {
			t.Errorf("closed with %d", closed)
		}
	})
	t.Run("no frame of a WebSocket", func(t *testing.T) {
		for name, b := range map[string][]byte{"unknown opcode": {0x83, 0x80, 0, 0, 0, 0}, "reserved bit": {0xC1, 0x80, 0, 0, 0, 0}} {
			if code := (caller{t, c.ctx}).rawFrame(sb, b); code != int(websocket.StatusProtocolError) {
				t.Errorf("%s: closed with %d", name, code)
			}
		}
	})
	t.Run("a ping is answered", func(t *testing.T) {
		ws := caller{t, c.ctx}.socket(sb, sleeping)
		receive(t, c.ctx, ws) // It has started, and says no more.
		if err := ws.Ping(ws.CloseRead(c.ctx)); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 10*time.Second, "no process of all these is left", func() bool { return sh(t, c.ctx, id, "ps -o args | grep '^sleep' || true") == "" })
}

// socketOpen opens an exec stream and sends nothing.
func (c caller) socketOpen(key, sb string) *websocket.Conn {
	c.t.Helper()
	ws, _, err := websocket.Dial(c.ctx, s.m.URL+sb+"/exec/stream", &websocket.DialOptions{HTTPHeader: map[string][]string{"Authorization": {"Bearer " + key}}})
	if err != nil {
		c.t.Fatal(err)
	}
	ws.SetReadLimit(1 << 20)
	c.t.Cleanup(func() { ws.CloseNow() })
	return ws
}

// rawFrame sends bytes in place of a frame and returns the code of the close frame that answers them.
func (c caller) rawFrame(sb string, b []byte) int {
	c.t.Helper()
	conn, err := net.Dial("tcp", s.m.Addr)
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(overrun * 20 * time.Second)) // Never fails on a connection that is open.
	fmt.Fprintf(conn, "GET %s/exec/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", sb, s.key)
	conn.Write(b)
	got, err := io.ReadAll(conn)
	_, frame, ok := bytes.Cut(got, []byte("\r\n\r\n"))
	if !ok || len(frame) < 4 || frame[0] != 0x88 {
		c.t.Errorf("no close frame: %q, %v", got, err)
		return 0
	}
	return int(binary.BigEndian.Uint16(frame[2:]))
}

// writer writes a MiB after the other, and tells how many it has written.
const writer = `i=0; while :; do head -c 1048576 /dev/zero; i=$((i+1)); echo $i > /run/written-%s; done`

func TestAReaderThatStopsHoldsUpItsProcessAndNothingElse(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny","memory_mb":128}`)
	before := residents(t)
	st, _ := stream(t, c.ctx, id, &guestv1.ProcessStart{Cmd: "sh", Args: []string{"-c", fmt.Sprintf(writer, "grpc")}, User: "root"})
	ws := c.socket(sb, fmt.Sprintf(`{"start":{"cmd":"sh","args":["-c",%q],"user":"root"}}`, fmt.Sprintf(writer, "ws")))
	written := func() string { return sh(t, c.ctx, id, "cat /run/written-grpc /run/written-ws 2>/dev/null || true") } // Another stream, which goes on.
	last, since := "", time.Now()
	eventually(t, 40*time.Second, "both writers are held up", func() bool {
		if now := written(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 1500*time.Millisecond && len(strings.Fields(last)) == 2
	})
	for name, now := range residents(t) {
		if grown := now - before[name]; grown > 48<<20 {
			t.Errorf("%s holds %d MiB for readers that do not read", name, grown>>20)
		}
	}
	var at [2]uint64
	fmt.Sscan(last, &at[0], &at[1])
	t.Logf("held up after %d MiB natively and %d MiB over a WebSocket", at[0], at[1])
	// Who reads again gets every byte.
	var n uint64
	for n < (at[0]+2)<<20 {
		f, err := st.Recv()
		if err != nil || f.GetOutput().GetSequence() != n {
			t.Fatalf("after %d bytes: %v, %v", n, f.GetOutput().GetSequence(), err)
		}
		n += uint64(len(f.GetOutput().GetData()))
	}
	for n = 0; n < (at[1]+2)<<20; {
		f, data := receive(t, c.ctx, ws)
		if f.Output != nil && f.Output.Sequence != n {
			t.Fatalf("over a WebSocket after %d bytes: %d", n, f.Output.Sequence)
		}
		n += uint64(len(data))
	}
}

func TestOutputGoesOnAfterInputIsClosed(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny","memory_mb":128}`)
	const script = "cat; for i in 1 2 3; do sleep 0.1; echo $i; done; exit 4"
	st, _ := stream(t, c.ctx, id, &guestv1.ProcessStart{Cmd: "sh", Args: []string{"-c", script}})
	for _, f := range []*guestv1.ExecStreamRequest{{Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: []byte("in\n")}}, {Frame: &guestv1.ExecStreamRequest_CloseStdin{CloseStdin: &guestv1.CloseStdin{}}}} {
		if err := st.Send(f); err != nil {
			t.Fatal(err)
		}
	}
	var out []byte
	if exited, err := drain(st, func(o *guestv1.Output) { out = append(out, o.GetData()...) }); err != nil || exited.GetExitCode() != 4 || string(out) != "in\n1\n2\n3\n" {
		t.Errorf("%q, %v, %v", out, exited, err)
	}
	ws := c.socket(sb, fmt.Sprintf(`{"start":{"cmd":"sh","args":["-c",%q]}}`, script))
	for _, m := range []string{`{"stdin":"aW4K"}`, `{"close_stdin":{}}`} {
		if err := ws.Write(c.ctx, websocket.MessageText, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	for out = nil; ; {
		f, data := receive(t, c.ctx, ws)
		if out = append(out, data...); f.Exited == nil {
			continue
		}
		if f.Exited.ExitCode != 4 || string(out) != "in\n1\n2\n3\n" {
			t.Errorf("%q, %v", out, f.Exited)
		}
		break
	}
	// The request side that ends takes the process along, but for one that is detached.
	for _, is := range []bool{false, true} {
		st, pid := stream(t, c.ctx, id, &guestv1.ProcessStart{Cmd: "sleep", Args: []string{"1000"}, Detached: is})
		if err := st.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if is {
			if !running(t, c.ctx, id, pid) {
				t.Error("a detached process ended with its stream")
			}
			continue
		}
		if exited, err := drain(st, func(*guestv1.Output) {}); err == nil && exited.GetSignal() == "" {
			t.Errorf("%v, %v", exited, err)
		}
		eventually(t, 10*time.Second, "process ended", func() bool { return !running(t, c.ctx, id, pid) })
	}
}

func TestAnUploadThatIsCutOffLeavesNothing(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny","memory_mb":128}`)
	sh(t, c.ctx, id, "mkdir -m 777 /tmp/up; echo before >/tmp/up/there; chmod 666 /tmp/up/there")
	t.Run("by HTTP", func(t *testing.T) {
		conn, err := net.Dial("tcp", s.m.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST %s/files/stream/write?path=/tmp/up/half HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 9000000\r\n\r\n", sb, s.key)
		conn.Write(make([]byte, 4<<20))
		_ = conn.(*net.TCPConn).CloseWrite() // The answer tells whether it worked.
		if b, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 400") || !strings.Contains(string(b), "BODY_CUT_OFF") {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("by HTTP, of a client that is gone", func(t *testing.T) {
		conn, err := net.Dial("tcp", s.m.Addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s/files/stream/write?path=/tmp/up/there HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 9000000\r\n\r\n", sb, s.key)
		conn.Write(make([]byte, 1<<20))
		_ = conn.(*net.TCPConn).SetLinger(0) // As a machine that was switched off and on.
		conn.Close()
	})
	t.Run("by gRPC", func(t *testing.T) {
		for _, path := range []string{"/tmp/up/half", "/tmp/up/there"} {
			ctx, cancel := context.WithCancel(c.ctx)
			st, err := s.files.WriteFile(ctx)
			if err == nil {
				err = st.Send(&guestv1.WriteFileRequest{SandboxId: id, Header: &guestv1.WriteFileHeader{Path: path}, Data: make([]byte, 256<<10)})
			}
			if err != nil {
				t.Error(err)
			}
			cancel()
			if _, err := st.CloseAndRecv(); err == nil {
				t.Error("it was taken for the whole file")
			}
		}
	})
	eventually(t, 10*time.Second, "nothing but what was there", func() bool { return sh(t, c.ctx, id, "ls -A /tmp/up; cat /tmp/up/there") == "there\nbefore" })
}

func TestARevokedKeyEndsWhatItHasOpen(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny","memory_mb":128}`)
	secret, key := newKey(t, c.ctx, "", "read", "write")
	own := as(c.ctx, secret)
	st, pid := stream(t, own, id, &guestv1.ProcessStart{Cmd: "sleep", Args: []string{"1000"}})
	ws := c.socketAs(secret, sb, `{"start":{"cmd":"sleep","args":["1000"]}}`)
	watch, err := s.sandboxes.WatchSandboxes(own, &sandboxv1.WatchSandboxesRequest{SandboxId: id})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.keys.RevokeKey(c.ctx, &sandboxv1.RevokeKeyRequest{KeyId: key}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = s.sandboxes.GetSandbox(own, &sandboxv1.GetSandboxRequest{SandboxId: id})
	refused(t, err, "INVALID_API_KEY")
	c.refused("INVALID_API_KEY", "GET", sb, "", "Authorization", "Bearer "+secret)
	_, err = drain(st, func(*guestv1.Output) {})
	refused(t, err, "INVALID_API_KEY")
	for err = nil; err == nil; {
		_, err = watch.Recv()
	}
	refused(t, err, "INVALID_API_KEY")
	if reason, closed := ending(t, c.ctx, ws); reason != "INVALID_API_KEY" || closed != 4401 {
		t.Errorf("the WebSocket: %s, %d", reason, closed)
	}
	t.Logf("all had ended after %s", time.Since(began).Round(time.Millisecond))
	eventually(t, 10*time.Second, "process ended", func() bool { return !running(t, c.ctx, id, pid) })
}

func TestAWebSocketThatIsGoneWithoutAWordTakesItsProcessWithIt(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny","memory_mb":128}`)
	ws := c.socket(sb, `{"start":{"cmd":"sleep","args":["1000"]}}`)
	f, _ := receive(t, c.ctx, ws)
	ws.CloseNow() // No closing handshake.
	eventually(t, 10*time.Second, "process ended", func() bool { return !running(t, c.ctx, id, f.Started.ProcessID) })
}
