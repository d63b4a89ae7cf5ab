package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/coder/websocket"
)

// frameOut is what a test reads of an exec stream's frames.
type frameOut struct {
	Started *struct {
		ProcessID string `json:"process_id"`
	}
	Output *struct {
		Data     string
		Sequence uint64 `json:",string"`
	}
	Gap    *struct{}
	Exited *struct {
		ExitCode int `json:"exit_code"`
	}
	Error *struct{ Reason, Message string }
}

// socket opens an exec stream and sends its first message.
func (c caller) socket(sb, first string) *websocket.Conn {
	c.t.Helper()
	return c.socketAs(s.key, sb, first)
}

func (c caller) socketAs(key, sb, first string) *websocket.Conn {
	c.t.Helper()
	ws, _, err := websocket.Dial(c.ctx, s.m.URL+sb+"/exec/stream", &websocket.DialOptions{
		Subprotocols: []string{"covey.exec.v1.json"}, HTTPHeader: http.Header{"Authorization": {"Bearer " + key}},
	})
	if err == nil {
		ws.SetReadLimit(1 << 20)
		err = ws.Write(c.ctx, websocket.MessageText, []byte(first))
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { ws.CloseNow() })
	return ws
}

func receive(t *testing.T, ctx context.Context, ws *websocket.Conn) (f frameOut, data []byte) {
	t.Helper()
	_, b, err := ws.Read(ctx)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err == nil && f.Output != nil {
		data, err = base64.StdEncoding.DecodeString(f.Output.Data)
	}
	if err != nil || f.Error != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return f, data
}

func TestADroppedWebSocketIsResumedWithoutLosingOutput(t *testing.T) {
	c := api(t)
	_, sb := c.make(`{"template":"tiny"}`)
	// Lines come before, during and after the time without a connection; the process then waits for input, so that it is still there.
	const script = `for i in $(seq 1 2000); do echo line $i; done; read go; for i in $(seq 2001 2500); do echo line $i; done`
	ws := c.socket(sb, fmt.Sprintf(`{"start":{"cmd":"sh","args":["-c",%q],"detached":true}}`, script))
	var got bytes.Buffer
	var process string
	for got.Len() < 1000 {
		f, data := receive(t, c.ctx, ws)
		if got.Write(data); f.Started != nil {
			process = f.Started.ProcessID
		}
	}
	ws.CloseNow() // As a network that breaks: no closing handshake.
	ws = c.socket(sb, fmt.Sprintf(`{"attach":{"process_id":%q,"from_sequence":"%d"}}`, process, got.Len()))
	if err := ws.Write(c.ctx, websocket.MessageBinary, []byte("go\n")); err != nil {
		t.Fatal(err)
	}
	for {
		f, data := receive(t, c.ctx, ws)
		if f.Gap != nil {
			t.Fatal("output was lost")
		}
		if f.Output != nil && f.Output.Sequence != uint64(got.Len()) {
			t.Fatalf("output at %d, after %d bytes", f.Output.Sequence, got.Len())
		}
		if got.Write(data); f.Exited != nil {
			if f.Exited.ExitCode != 0 {
				t.Errorf("exit code %d", f.Exited.ExitCode)
			}
			break
		}
	}
	var want bytes.Buffer
	for i := 1; i <= 2500; i++ {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("got %d bytes, want %d", got.Len(), want.Len())
	}
}
