package gateway_test

import (
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/gateway/internal/gateway"
	"github.com/coveyhq/covey/gateway/internal/limit"
	"github.com/coveyhq/covey/gateway/internal/meshtest"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
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
	if p := a.problem(t); a.status != 429 || p.Reason != "RATE_LIMITED" || a.header.Get("Retry-After") != "100" {
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
