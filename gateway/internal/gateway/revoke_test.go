package gateway_test

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// TestWhatAKeyHasOpenedEndsWithTheKeyAndSaysSo has one call of each kind open while its key is revoked.
func TestWhatAKeyHasOpenedEndsWithTheKeyAndSaysSo(t *testing.T) {
	g := start(t)
	var made struct {
		Key    struct{ ID string }
		Secret string
	}
	g.post("/v1/keys", `{"name":"ci"}`).into(t, &made)
	id, ctx := g.Add(), as(t, made.Secret)

	ws, _, err := websocket.Dial(ctx, g.url+"/v1/sandboxes/"+id+"/exec/stream", &websocket.DialOptions{Subprotocols: []string{"covey.key." + made.Secret}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	s := &socket{ws, t, ctx}
	s.send(`{"start":{"cmd":"cat"}}`)
	s.next()
	lines := g.lines(ctx, "/v1/sandboxes:watch", made.Secret)
	lines.Scan()
	conn := g.dial()
	watch, err := sandboxv1.NewSandboxServiceClient(conn).WatchSandboxes(ctx, &sandboxv1.WatchSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	exec, err := guestv1.NewProcessServiceClient(conn).ExecStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Send(&guestv1.ExecStreamRequest{SandboxId: id, Frame: &guestv1.ExecStreamRequest_Start{Start: &guestv1.ProcessStart{Cmd: "cat"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.Recv(); err != nil {
		t.Fatal(err)
	}
	if a := g.do("DELETE", "/v1/keys/"+made.Key.ID, nil); a.status != http.StatusOK {
		t.Fatalf("revoke: %d %s", a.status, a.body)
	}

	const reason = "INVALID_API_KEY"
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		f, err := s.read()
		if err != nil || f.Error == nil || f.Error.Reason != reason {
			t.Errorf("WebSocket: %+v, %v", f, err)
		}
		if _, err := s.read(); websocket.CloseStatus(err) != 4401 {
			t.Errorf("WebSocket closed with %v", err)
		}
	})
	all.Go(func() {
		var last string
		for lines.Scan() {
			last = lines.Text()
		}
		if !strings.Contains(last, reason) {
			t.Errorf("the last line of a watch is %q", last)
		}
	})
	all.Go(func() {
		var err error
		for err == nil {
			_, err = watch.Recv()
		}
		ended(t, "native watch", err)
	})
	all.Go(func() {
		_, err := exec.Recv()
		ended(t, "native exec stream", err)
	})
}

func ended(t *testing.T, what string, err error) {
	t.Helper()
	if status.Code(err) != codes.Unauthenticated || apierr.Reason(err) != "INVALID_API_KEY" {
		t.Errorf("%s ended with %v", what, err)
	}
}

// lines reads an answer that goes on, by lines.
func (g *running) lines(ctx context.Context, path, key string) *bufio.Scanner {
	g.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("X-API-Key", key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { res.Body.Close() })
	return bufio.NewScanner(res.Body)
}
