// Package tenant carries whose request it is, and which, from daemon to daemon: in a context on one side of a call, in gRPC
// metadata between. The gateway sets the tenant after it has authenticated a client; every daemon behind it believes it.
package tenant

import (
	"context"
	"strings"

	"google.golang.org/grpc/metadata"
)

// Metadata keys.
const (
	Key          = "covey-tenant"
	RequestIDKey = "covey-request-id"
)

// Default is the first tenant, and that of calls that name none.
const Default = "default"

// maxRequestID bounds what is taken over into logs and errors from a client.
const maxRequestID = 128

type (
	tenantKey  struct{}
	requestKey struct{}
)

// With returns a context of a tenant.
func With(ctx context.Context, tenant string) context.Context {
	return context.WithValue(ctx, tenantKey{}, tenant)
}

// From returns the context's tenant, or Default.
func From(ctx context.Context) string {
	if t, ok := Lookup(ctx); ok {
		return t
	}
	return Default
}

// Lookup returns the context's tenant and whether one was set.
func Lookup(ctx context.Context) (string, bool) {
	t, ok := ctx.Value(tenantKey{}).(string)
	return t, ok && t != ""
}

// WithRequestID returns a context of a request.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestID returns the context's request id, or "".
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// Incoming takes tenant and request id from the metadata of a call that came in. Where trusted is false, as at the mesh's
// edge, only the request id is taken.
func Incoming(ctx context.Context, trusted bool) context.Context {
	md, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return ctx
	}
	if v := md.Get(Key); trusted && len(v) > 0 && v[0] != "" {
		ctx = With(ctx, v[0])
	}
	if v := md.Get(RequestIDKey); len(v) > 0 && legalID(v[0]) {
		ctx = WithRequestID(ctx, v[0])
	}
	return ctx
}

// legalID keeps out what would make a log hard to read.
func legalID(id string) bool {
	return id != "" && len(id) <= maxRequestID && !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' })
}

// Outgoing sets the metadata of a call that goes out to the context's tenant and request id, replacing what is there.
func Outgoing(ctx context.Context) context.Context {
	t, hasTenant := Lookup(ctx)
	id := RequestID(ctx)
	if !hasTenant && id == "" {
		return ctx
	}
	md, ok := metadata.FromOutgoingContext(ctx)
	if !ok {
		md = metadata.MD{}
	}
	if hasTenant {
		md.Set(Key, t)
	}
	if id != "" {
		md.Set(RequestIDKey, id)
	}
	return metadata.NewOutgoingContext(ctx, md)
}
