package access

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Guard is a connection for calls on behalf of callers: it refuses what the caller in the context may not call, tells the service behind it the
// key's scopes and id, and forgets a key that is revoked through it.
func (k *Keys) Guard(conn grpc.ClientConnInterface) grpc.ClientConnInterface { return guard{k, conn} }

type guard struct {
	keys *Keys
	conn grpc.ClientConnInterface
}

func (g guard) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := g.keys.Check(ctx, method); err != nil {
		return err
	}
	err := g.conn.Invoke(withKey(ctx), method, args, reply, opts...)
	if q, ok := args.(interface{ GetKeyId() string }); ok && strings.HasSuffix(method, "/RevokeKey") {
		g.keys.Forget(q.GetKeyId())
	}
	return err
}

func (g guard) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := g.keys.Check(ctx, method); err != nil {
		return nil, err
	}
	return g.conn.NewStream(withKey(ctx), desc, method, opts...)
}

// withKey adds to what goes out. Nothing of a client's call is in there, so nothing has to be replaced.
func withKey(ctx context.Context) context.Context {
	c, _ := From(ctx)
	return metadata.AppendToOutgoingContext(ctx, ScopesKey, strings.Join(c.Scopes, ","), KeyIDKey, c.KeyID)
}
