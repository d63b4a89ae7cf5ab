package chassis

import (
	"context"
	"net"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/coveyhq/covey/services/chassis/apierr"
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

// checkPeer refuses callers that are no service of the mesh, or not one that may call.
func (d *Daemon) checkPeer(ctx context.Context, fullMethod string) error {
	if !d.servesTLS() {
		return nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return apierr.E(codes.Unauthenticated, "CALLER_UNKNOWN", "the call has no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return apierr.E(codes.Unauthenticated, "CALLER_UNKNOWN", "the caller does not use TLS")
	}
	service, err := d.identity.Caller(info.State)
	if err != nil {
		return apierr.E(codes.Unauthenticated, "CALLER_UNKNOWN", err.Error())
	}
	of := strings.TrimPrefix(fullMethod[:max(0, strings.LastIndexByte(fullMethod, '/'))], "/")
	callers, own := d.opts.callersOf[of]
	if !own {
		callers = d.opts.callers
	}
	if (own || len(callers) > 0) && !slices.Contains(callers, service) {
		return apierr.E(codes.PermissionDenied, "CALLER_NOT_ALLOWED", service+" may not call "+of+" of "+d.cfg.Service, "caller", service)
	}
	return nil
}
