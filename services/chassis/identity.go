package chassis

import (
	"context"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/consul"
)

// serverCredentials are those of the gRPC port. At the mesh's edge there are no identities of the mesh; TLS for the world is for who stands before it.
func (d *Daemon) serverCredentials() credentials.TransportCredentials {
	if !d.servesTLS() {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(d.identity.Server())
}

func (d *Daemon) servesTLS() bool { return d.identity != nil && !d.opts.public }

// clientCredentials are those of connections to a service.
func (d *Daemon) clientCredentials(service string) credentials.TransportCredentials {
	if d.identity == nil {
		return insecure.NewCredentials()
	}
	return patient{credentials.NewTLS(d.identity.Client(service)), d.identity}
}

// patient waits for the identity before a handshake: the server's certificate is checked at a point where TLS cannot wait.
type patient struct {
	credentials.TransportCredentials
	identity *consul.Identity
}

// ClientHandshake implements credentials.TransportCredentials.
func (p patient) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := p.identity.Wait(ctx); err != nil {
		return nil, nil, err
	}
	return p.TransportCredentials.ClientHandshake(ctx, authority, c)
}

// Clone implements credentials.TransportCredentials.
func (p patient) Clone() credentials.TransportCredentials {
	return patient{p.TransportCredentials.Clone(), p.identity}
}

// checkPeer refuses callers that are no service of the mesh, or not one that may call. It returns the context of a call by that one.
func (d *Daemon) checkPeer(ctx context.Context, fullMethod string) (context.Context, error) {
	if !d.servesTLS() {
		return ctx, nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ctx, apierr.E(codes.Unauthenticated, "CALLER_UNKNOWN", "the call has no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return ctx, apierr.E(codes.Unauthenticated, "CALLER_UNKNOWN", "the caller does not use TLS")
	}
	c, err := d.identity.Caller(info.State)
	if err != nil {
		return ctx, apierr.E(codes.Unauthenticated, "CALLER_UNKNOWN", err.Error())
	}
	if d.opts.callers != nil {
		if err := d.opts.callers.Check(d.cfg.Service, c, fullMethod); err != nil {
			return ctx, err
		}
	}
	return caller.With(ctx, c), nil
}

// checkTable refuses to serve methods of which nothing says who may call them.
func (d *Daemon) checkTable() error {
	if d.opts.callers == nil {
		return nil
	}
	if lacks := d.opts.callers.Lacks(d.server.GetServiceInfo()); len(lacks) > 0 {
		return fmt.Errorf("no row says who may call %s", strings.Join(lacks, ", "))
	}
	return nil
}
