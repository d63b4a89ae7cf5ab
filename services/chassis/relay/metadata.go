package relay

import (
	"context"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/coveyhq/covey/services/chassis/tenant"
)

// ownMetadata belongs to one hop: each connection has its own, or it must not go further.
var ownMetadata = map[string]bool{
	"content-type": true, "user-agent": true, "te": true, "connection": true, "host": true, "keep-alive": true,
	"transfer-encoding": true, "upgrade": true, "proxy-connection": true, "proxy-authorization": true,
	"authorization": true, "cookie": true, "set-cookie": true, "x-api-key": true, "x-forwarded-for": true, "x-forwarded-host": true,
	tenant.Key: true, tenant.RequestIDKey: true,
}

// passing is the part of a call's metadata that goes on. Names with ":" are HTTP/2's, those with "grpc-" are gRPC's.
func passing(in metadata.MD) metadata.MD {
	out := make(metadata.MD, len(in))
	for k, v := range in {
		if !ownMetadata[k] && !strings.HasPrefix(k, ":") && !strings.HasPrefix(k, "grpc-") {
			out[k] = v
		}
	}
	return out
}

// onward is a context for the same call's next hop.
func onward(ctx context.Context) context.Context {
	in, _ := metadata.FromIncomingContext(ctx)
	return tenant.Outgoing(metadata.NewOutgoingContext(ctx, passing(in)))
}
