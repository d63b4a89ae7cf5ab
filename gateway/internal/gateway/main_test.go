package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/coveyhq/covey/gateway/internal/gateway"
	"github.com/coveyhq/covey/gateway/internal/meshtest"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }

// running is a running gatewayd on a fake mesh.
type running struct {
	*meshtest.Mesh
	t    testing.TB
	url  string
	addr string
	stop func()

	daemon *chassis.Daemon
}

// start runs the real program on port 0.
func start(t testing.TB) *running {
	t.Helper()
	return startWith(t, gateway.Config{})
}

// startWith runs it with more of a configuration than where the mesh is.
func startWith(t testing.TB, c gateway.Config) *running {
	t.Helper()
	mesh := meshtest.Start(t)
	c.Chassis = chassis.Config{Service: "covey-gateway", Peers: map[string][]string{
		"covey-sandbox": {mesh.Addr}, "covey-scheduler": {mesh.Addr}, "covey-snapshot": {mesh.Addr},
	}}
	return run(t, mesh, c)
}

// run runs it on a mesh that the configuration names.
func run(t testing.TB, mesh *meshtest.Mesh, c gateway.Config) *running {
	t.Helper()
	m, err := gateway.New(c, chassis.WithLogOutput(t.Output()))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Daemon.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Daemon.Run(ctx) }()
	g := &running{Mesh: mesh, t: t, addr: m.Daemon.Addr(), url: "http://" + m.Daemon.Addr(), daemon: m.Daemon}
	g.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		g.stop()
	})
	return g
}

// as is a context of native gRPC calls with a key.
func as(t testing.TB, key string) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
}

func (g *running) dial() *grpc.ClientConn {
	g.t.Helper()
	c, err := grpc.NewClient(g.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// problem reads the answer as an error.
func (a answer) problem(t testing.TB) (p struct {
	Code, Reason, Message string
	Details               map[string]string
	RequestID             string `json:"request_id"`
}) {
	t.Helper()
	if kind := a.header.Get("Content-Type"); kind != "application/json" {
		t.Errorf("an error has the type %q", kind)
	}
	var whole struct{ Error json.RawMessage }
	err := json.Unmarshal(a.body, &whole)
	if err == nil {
		err = json.Unmarshal(whole.Error, &p)
	}
	if err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	if p.RequestID == "" || p.RequestID != a.header.Get("X-Request-Id") || p.Code == "" || p.Reason == "" || p.Details == nil {
		t.Errorf("the error is not whole: %s", a.body)
	}
	return p
}

// do sends a request with the administrator's key, unless a header says otherwise.
func (g *running) do(method, path string, body io.Reader, header ...string) answer {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, body)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+meshtest.AdminKey)
	for i := 0; i+1 < len(header); i += 2 {
		if req.Header.Del(header[i]); header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	conforms(g.t, req, res, b)
	return answer{res.StatusCode, res.Header, b}
}

// post sends JSON.
func (g *running) post(path, body string, header ...string) answer {
	g.t.Helper()
	return g.do("POST", path, strings.NewReader(body), append([]string{"Content-Type", "application/json"}, header...)...)
}

// into reads a good answer.
func (a answer) into(t testing.TB, v any) {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("%d: %s", a.status, a.body)
	}
	if err := json.NewDecoder(bytes.NewReader(a.body)).Decode(v); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
}
