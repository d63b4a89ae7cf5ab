package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// guestProgram listens on the loopback's port 8000: /ws echoes one message over a WebSocket, /big sends 32 MiB, a POST answers with what it got,
// and anything else with the request's head.
const guestProgram = `
import base64, hashlib, http.server, socketserver
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def say(self, b):
        self.send_response(200); self.send_header('Content-Length', str(len(b))); self.end_headers(); self.wfile.write(b)
    def do_POST(self):
        self.say(hashlib.sha256(self.rfile.read(int(self.headers['Content-Length']))).hexdigest().encode())
    def do_GET(self):
        if self.path == '/big':
            self.send_response(200); self.send_header('Content-Length', str(32<<20)); self.end_headers()
            for _ in range(32): self.wfile.write(b'x' * (1<<20))
        elif self.path == '/ws':
            key = base64.b64encode(hashlib.sha1((self.headers['Sec-WebSocket-Key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').encode()).digest())
            self.wfile.write(b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ' + key + b'\r\n\r\n')
            n = self.rfile.read(2)[1] & 127; mask = self.rfile.read(4); data = self.rfile.read(n)
            self.wfile.write(bytes([0x81, n]) + bytes(c ^ mask[i % 4] for i, c in enumerate(data)))
            self.close_connection = True
        else:
            self.say((self.requestline + '\n' + str(self.headers)).encode())
class S(socketserver.ThreadingMixIn, http.server.HTTPServer): daemon_threads = True
S(('127.0.0.1', 8000), H).serve_forever()
`

// serve starts the program in a sandbox of its own.
func (c caller) serve() (id, sb string) {
	c.t.Helper()
	id, sb = c.make(`{"template":"base","auto_resume":true}`)
	if status, b := c.call("POST", sb+"/files/stream/write?path=/tmp/serve.py", guestProgram, "Content-Type", ""); status != 200 {
		c.t.Fatalf("%d %s", status, b)
	}
	c.ok("POST", sb+"/exec", `{"cmd":"sh","args":["-c","setsid python3 /tmp/serve.py >/dev/null 2>&1 </dev/null &"]}`)
	eventually(c.t, 20*time.Second, "the program to listen", func() bool {
		status, _ := c.call("GET", sb+"/ports/8000/", "")
		return status == 200
	})
	return id, sb
}

func TestAProgramInASandboxIsReachedThroughItsPort(t *testing.T) {
	c := api(t)
	id, sb := c.serve()
	t.Run("by path with the key, which it does not see", func(t *testing.T) {
		status, head := caller{t, c.ctx}.call("GET", sb+"/ports/8000/a%2Fb?x=1", "")
		if status != 200 || !strings.HasPrefix(head, "GET /a%2Fb?x=1 HTTP/1.1") || strings.Contains(head, "cvy_") {
			t.Errorf("%d %s", status, head)
		}
	})
	t.Run("by host name with a token, of any case", func(t *testing.T) {
		c := caller{t, c.ctx}
		u, err := url.Parse(c.ok("POST", sb+"/ports/8000/token", `{"ttl_sec":60}`)["url"].(string))
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{u.Host, strings.ToUpper(u.Host)} {
			status, head := c.call("GET", u.RequestURI(), "", "Authorization", "", "Host", host)
			if status != 200 || !strings.HasPrefix(head, "GET / HTTP/1.1") || strings.Contains(head, "covey_token") {
				t.Errorf("%d %s", status, head)
			}
		}
	})
	t.Run("by WebSocket", func(t *testing.T) {
		ws, _, err := websocket.Dial(c.ctx, s.m.URL+sb+"/ports/8000/ws", &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + s.key}}})
		if err == nil {
			defer ws.CloseNow()
			err = ws.Write(c.ctx, websocket.MessageText, []byte("hello"))
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, b, err := ws.Read(c.ctx); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("with large bodies both ways", func(t *testing.T) {
		c := caller{t, c.ctx}
		if n, err := io.Copy(io.Discard, c.open("GET", sb+"/ports/8000/big", nil).Body); n != 32<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		res := c.open("POST", sb+"/ports/8000/", bytes.NewReader(make([]byte, 8<<20)))
		if sum, _ := io.ReadAll(res.Body); string(sum) != "2daeb1f36095b44b318410b3f4e8b5d989dcc7bb023d1426c492dab0a3053e74" {
			t.Errorf("%d %s", res.StatusCode, sum)
		}
	})
	t.Run("a port that nothing listens on is a clear 502", func(t *testing.T) {
		if status, body := (caller{t, c.ctx}).call("GET", sb+"/ports/8001/", ""); status != 502 || !strings.Contains(body, "PORT_CLOSED") || !strings.Contains(body, "8001") {
			t.Errorf("%d %s", status, body)
		}
	})
	t.Run("by the CLI", func(t *testing.T) { forwarded(t, c.ctx, id) })
	t.Run("and wakes the sandbox", func(t *testing.T) {
		c := caller{t, c.ctx}
		c.ok("POST", sb+"/pause", "{}")
		if status, body := c.call("GET", sb+"/ports/8000/", ""); status != 200 {
			t.Errorf("%d %s", status, body)
		}
		if st := get(t, c.ctx, id).GetState(); st != sandboxv1.State_STATE_RUNNING {
			t.Errorf("it is %s", st)
		}
	})
}

// forwarded uses `covey port` and `covey forward`, the real program.
func forwarded(t *testing.T, ctx context.Context, id string) {
	t.Helper()
	cmd := covey(t, ctx, s.key, "port", "--path", id, "8000")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if res, err := http.Get(strings.TrimSpace(string(out))); err != nil || res.StatusCode != 200 {
		t.Errorf("%s: %v, %v", out, res, err)
	} else {
		res.Body.Close()
	}
	cmd = covey(t, ctx, s.key, "forward", id, "0:8000")
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := sync.OnceValue(func() error {
		_ = cmd.Process.Signal(syscall.SIGINT) // An error means that it has ended.
		return cmd.Wait()
	})
	defer func() {
		if err := ended(); err != nil {
			t.Errorf("covey forward: %v", err)
		}
	}()
	line, err := bufio.NewReader(stderr).ReadString('\n')
	m := regexp.MustCompile(`^(127\.0\.0\.1:\d+) is port 8000`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("it said %q, %v", line, err)
	}
	conn, err := net.Dial("tcp", m[1])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /x HTTP/1.0\r\n\r\n")
	_ = conn.(*net.TCPConn).CloseWrite() // The program answers what it has got.
	if b, err := io.ReadAll(conn); err != nil || !strings.Contains(string(b), "GET /x HTTP/1.0") {
		t.Errorf("%q, %v", b, err)
	}
}
