package gateway_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"

	"github.com/coveyhq/covey/gateway/internal/meshtest"
)

// BenchmarkGet compares a read straight from the service with the same through the gateway, natively and over REST.
func BenchmarkGet(b *testing.B) {
	g := start(b)
	id := g.Add()
	get := func(b *testing.B, addr string, ctx context.Context) {
		c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		for b.Loop() {
			if _, err := sandboxv1.NewSandboxServiceClient(c).GetSandbox(ctx, &sandboxv1.GetSandboxRequest{SandboxId: id}); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("direct", func(b *testing.B) { get(b, g.Addr, b.Context()) })
	b.Run("native", func(b *testing.B) {
		get(b, g.addr, metadata.AppendToOutgoingContext(b.Context(), "authorization", "Bearer "+meshtest.AdminKey))
	})
	b.Run("rest", func(b *testing.B) {
		for b.Loop() {
			if a := g.do("GET", "/v1/sandboxes/"+id, nil); a.status != http.StatusOK {
				b.Fatalf("%d %s", a.status, a.body)
			}
		}
	})
}

// BenchmarkTransfer is the rate of files through the gateway; client, gateway and host are one process here.
func BenchmarkTransfer(b *testing.B) {
	g := start(b)
	sb := "/v1/sandboxes/" + g.Add()
	content := strings.Repeat("x", 16<<20)
	b.Run("upload", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			if a := g.do("POST", sb+"/files/stream/write?path=f", strings.NewReader(content)); a.status != http.StatusOK {
				b.Fatalf("%d %s", a.status, a.body)
			}
		}
	})
	b.Run("download", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			if a := g.do("GET", sb+"/files/stream/read?path=f", nil); len(a.body) != len(content) {
				b.Fatalf("%d, %d bytes", a.status, len(a.body))
			}
		}
	})
}
