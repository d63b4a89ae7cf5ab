package tenant_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"

	"github.com/coveyhq/covey/services/chassis/tenant"
)

// cross is what the other side of a call sees.
func cross(ctx context.Context, trusted bool) context.Context {
	md, _ := metadata.FromOutgoingContext(tenant.Outgoing(ctx))
	return tenant.Incoming(metadata.NewIncomingContext(context.Background(), md), trusted)
}

func TestTenantAndRequestIDCrossACall(t *testing.T) {
	ctx := tenant.WithRequestID(tenant.With(context.Background(), "acme"), "req_1")
	ctx = metadata.AppendToOutgoingContext(ctx, tenant.Key, "forged")
	got := cross(ctx, true)
	if tenant.From(got) != "acme" || tenant.RequestID(got) != "req_1" {
		t.Fatalf("got tenant %q, request %q", tenant.From(got), tenant.RequestID(got))
	}
}

func TestTheEdgeBelievesNoTenant(t *testing.T) {
	got := cross(tenant.With(context.Background(), "acme"), false)
	if _, ok := tenant.Lookup(got); ok || tenant.From(got) != tenant.Default {
		t.Fatalf("got tenant %q", tenant.From(got))
	}
}

func TestUnreadableRequestIDsAreNotTakenOver(t *testing.T) {
	for _, id := range []string{"a b", "a\nb", "\x7f", strings.Repeat("x", 129)} {
		ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(tenant.RequestIDKey, id))
		if got := tenant.RequestID(tenant.Incoming(ctx, true)); got != "" {
			t.Errorf("took over %q", got)
		}
	}
}
