package gateway_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/gateway/internal/gateway"
	"github.com/coveyhq/covey/gateway/internal/limit"
	"github.com/coveyhq/covey/gateway/internal/meshtest"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/consul"
	"github.com/coveyhq/covey/services/chassis/consul/consultest"
)

func TestACallerBeyondItsRateIsToldWhenToComeBackByRESTAndGRPC(t *testing.T) {
	// A call in 100 seconds: nothing comes back while the test runs.
	g := startWith(t, gateway.Config{Rates: gateway.RatesConfig{Key: limit.Rate{PerSecond: 0.01, Burst: 2}}})
	for range 2 {
		if a := g.do("GET", "/v1/sandboxes", nil); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	a := g.do("GET", "/v1/sandboxes", nil)
	// As many seconds as there are until then, fewer the longer the calls took.
	if wait, _ := strconv.Atoi(a.header.Get("Retry-After")); a.status != 429 || a.problem(t).Reason != "RATE_LIMITED" || wait > 100 || wait < 50 {
		t.Errorf("%d %s, Retry-After %s", a.status, a.body, a.header.Get("Retry-After"))
	}
	_, err := sandboxv1.NewSandboxServiceClient(g.dial()).ListSandboxes(as(t, meshtest.AdminKey), &sandboxv1.ListSandboxesRequest{})
	var told bool
	for _, d := range status.Convert(err).Details() {
		_, ok := d.(*errdetails.RetryInfo)
		told = told || ok
	}
	if status.Code(err) != codes.ResourceExhausted || !told {
		t.Errorf("by gRPC: %v", err)
	}
	if a := g.do("GET", "/v1/sandboxes", nil, "Authorization", "Bearer "+meshtest.ReadKey); a.status != 200 {
		t.Errorf("another key: %d %s", a.status, a.body)
	}
}

func TestTwoGatewaysShareARate(t *testing.T) {
	server := consultest.Start(t)
	mesh := meshtest.Start(t)
	inConsul(t, server.Addr, mesh.Addr, "covey-sandbox", "covey-scheduler", "covey-snapshot")
	rates := gateway.RatesConfig{Tenant: limit.Rate{PerSecond: 0.001, Burst: 20}}
	var gs []*running
	for range 2 {
		gs = append(gs, run(t, mesh, gateway.Config{
			Rates: rates, Chassis: chassis.Config{Service: "covey-gateway", Consul: chassis.ConsulConfig{Address: server.Addr, CheckInterval: 100 * time.Millisecond}},
		}))
	}
	allowed := func(g *running) (n int) {
		for range 30 {
			if a := g.do("GET", "/v1/sandboxes", nil); a.status == 200 {
				n++
			} else if p := a.problem(t); p.Reason != "RATE_LIMITED" {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
		return n
	}
	for _, g := range gs {
		g.divides(2)
	}
	if a, b := allowed(gs[0]), allowed(gs[1]); a != 10 || b != 10 {
		t.Errorf("20 at once were %d and %d", a, b)
	}
	gs[1].stop()
	gs[0].divides(1)
}

// divides waits until the gateway divides rates by n.
func (g *running) divides(n float64) {
	g.t.Helper()
	eventually(g.t, fmt.Sprintf("rates are divided by %g", n), func() bool {
		families, err := g.daemon.Telemetry().Registry.Gather()
		if err != nil {
			g.t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "covey_rates_gateways" {
				return f.GetMetric()[0].GetGauge().GetValue() == n
			}
		}
		return false
	})
}

// inConsul registers fakes until the test's end.
func inConsul(t *testing.T, consulAddr, addr string, services ...string) {
	t.Helper()
	c, err := consul.New(consulAddr, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	ctx, cancel := context.WithCancel(context.Background())
	var staying sync.WaitGroup
	for _, name := range services {
		staying.Go(func() {
			c.Keep(ctx, consul.Registration{
				ID: name, Name: name, Host: host, Port: n, CheckInterval: time.Second, DeregisterAfter: time.Minute, Passing: func() bool { return true },
			})
		})
	}
	t.Cleanup(func() {
		cancel()
		staying.Wait()
		c.Close()
	})
}
