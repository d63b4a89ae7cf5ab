package chassis

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/relay"
)

// Auth admits or refuses a call before its handler: it returns the context for the handler, perhaps with a tenant, or a status.
// It is not asked about gRPC's health service.
type Auth func(ctx context.Context, fullMethod string) (context.Context, error)

type options struct {
	hostID    string
	auth      Auth
	relay     *relay.Relay
	public    bool
	http      http.Handler
	tls       *tls.Config
	callers   caller.Table // nil: every service of the mesh may call
	endless   map[string]bool
	server    []grpc.ServerOption
	log       *slog.Logger
	logOutput io.Writer
}

// Option changes how a Daemon is made.
type Option func(*options)

// WithHostID names the host that the daemon stands for: its id in Consul becomes "<service>-<id>" with meta host_id, and traces carry host.id.
func WithHostID(id string) Option { return func(o *options) { o.hostID = id } }

// WithAuth asks a before every call.
func WithAuth(a Auth) Option { return func(o *options) { o.auth = a } }

// WithRelay passes calls of services that are not registered to r, which the daemon waits for at its end.
func WithRelay(r *relay.Relay) Option { return func(o *options) { o.relay = r } }

// WithPublic is for a daemon at the mesh's edge: the tenant in a call's metadata is not believed, and clients need no identity of the mesh.
func WithPublic() Option { return func(o *options) { o.public = true } }

// WithHTTP serves HTTP/1.1 and HTTP/2 on the gRPC port: a connection whose first request is gRPC's is gRPC's, any other is h's, but for gRPC calls on it.
func WithHTTP(h http.Handler) Option { return func(o *options) { o.http = h } }

// WithTLS has the port of WithHTTP speak TLS and nothing else, with the certificates that get gives. It is for the mesh's edge; between daemons TLS is
// as the configuration says.
func WithTLS(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) Option {
	return func(o *options) {
		o.tls = &tls.Config{GetCertificate: get, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	}
}

// WithCallers has each method called only by the services that its row in t names, by their identities under mutual TLS. A method that is served and has no row
// is an error of Run. Default: every service of the mesh may call all.
func WithCallers(t caller.Table) Option {
	return func(o *options) { o.callers = t }
}

// WithEndless names server streams that go on until the caller ends them, like "/covey.sandbox.v1.SandboxService/WatchSandboxes". When the
// daemon drains their contexts end at once, and the callers get UNAVAILABLE with reason SHUTTING_DOWN: to watch again is to find another instance.
func WithEndless(fullMethods ...string) Option {
	return func(o *options) {
		if o.endless == nil {
			o.endless = map[string]bool{}
		}
		for _, m := range fullMethods {
			o.endless[m] = true
		}
	}
}

// WithServerOptions adds options to the gRPC server, after the chassis's own.
func WithServerOptions(opts ...grpc.ServerOption) Option {
	return func(o *options) { o.server = append(o.server, opts...) }
}

// WithLogger replaces the logger that the configuration describes.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.log = l } }

// WithLogOutput logs there instead of to standard error.
func WithLogOutput(w io.Writer) Option { return func(o *options) { o.logOutput = w } }
