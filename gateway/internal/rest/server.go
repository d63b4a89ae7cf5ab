package rest

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"sync"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/gateway/internal/audit"
	"github.com/coveyhq/covey/gateway/internal/ports"
)

// Config is what a Server works with.
type Config struct {
	// Sandboxes, Scheduler and Snapshots are connections to the services of the control plane.
	Sandboxes, Scheduler, Snapshots grpc.ClientConnInterface
	// Data calls the data plane.
	Data grpc.ClientConnInterface
	// Locate tells whether a method of the data plane can be called for a sandbox, resuming it where the call would.
	Locate func(ctx context.Context, fullMethod, sandboxID string) error
	// Keys knows callers.
	Keys *access.Keys
	// Audit is where tokens for ports are noted; what else clients do is noted by the connections.
	Audit *audit.Log
	// Checks are what /readyz asks for, by name.
	Checks map[string]func(context.Context) error
	// Ports makes and opens tokens for ports in sandboxes, whose host names end in PortDomain.
	Ports      *ports.Signer
	PortDomain string
	// PortsByHost says that PortDomain leads to the gateway from where browsers are: then ports by path take no cookies.
	PortsByHost bool
	// Metrics serves /metrics; to administrators, or to all with OpenMetrics.
	Metrics     http.Handler
	OpenMetrics bool
	// Draining is closed when the gateway begins to end: streams of events end then, WebSockets a little later.
	Draining <-chan struct{}
	Tracer   trace.Tracer
	Meter    metric.Meter
	// Propagator finds the caller's trace in a request's headers.
	Propagator propagation.TextMapPropagator
	Log        *slog.Logger
}

// Server is an http.Handler.
type Server struct {
	Config
	http       http.Handler
	mux        *runtime.ServeMux
	routes     routes
	sandboxes  sandboxv1.SandboxServiceClient
	operations sandboxv1.OperationsServiceClient
	processes  guestv1.ProcessServiceClient
	files      guestv1.FileServiceClient
	ports      guestv1.PortServiceClient
	proxy      *httputil.ReverseProxy
	durations  metric.Float64Histogram // of requests, seconds; WebSockets and streams of events too

	sockets sync.WaitGroup
}

// New makes a Server.
func New(c Config) (*Server, error) {
	s := &Server{Config: c}
	data, sandboxes := c.Keys.Guard(c.Data), c.Keys.Guard(c.Sandboxes)
	s.sandboxes = sandboxv1.NewSandboxServiceClient(sandboxes)
	s.operations = sandboxv1.NewOperationsServiceClient(sandboxes)
	s.processes = guestv1.NewProcessServiceClient(data)
	s.files = guestv1.NewFileServiceClient(data)
	s.ports = guestv1.NewPortServiceClient(data)
	s.proxy = s.portProxy()
	s.mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, codec{&runtime.JSONPb{MarshalOptions: marshal, UnmarshalOptions: unmarshal}}),
		runtime.WithErrorHandler(s.rpcError), runtime.WithRoutingErrorHandler(s.routingError),
		runtime.WithIncomingHeaderMatcher(nothing), runtime.WithOutgoingHeaderMatcher(nothing), runtime.WithOutgoingTrailerMatcher(nothing),
		runtime.WithDisablePathLengthFallback())
	ctx := context.Background()
	for _, err := range []error{
		sandboxv1.RegisterSandboxServiceHandlerClient(ctx, s.mux, s.sandboxes),
		sandboxv1.RegisterOperationsServiceHandlerClient(ctx, s.mux, s.operations),
		sandboxv1.RegisterTenantServiceHandlerClient(ctx, s.mux, sandboxv1.NewTenantServiceClient(sandboxes)),
		sandboxv1.RegisterKeyServiceHandlerClient(ctx, s.mux, sandboxv1.NewKeyServiceClient(sandboxes)),
		snapshotv1.RegisterSnapshotServiceHandlerClient(ctx, s.mux, snapshotv1.NewSnapshotServiceClient(c.Keys.Guard(c.Snapshots))),
		schedulerv1.RegisterHostsServiceHandlerClient(ctx, s.mux, schedulerv1.NewHostsServiceClient(c.Keys.Guard(c.Scheduler))),
		guestv1.RegisterProcessServiceHandlerClient(ctx, s.mux, s.processes),
		guestv1.RegisterFileServiceHandlerClient(ctx, s.mux, s.files),
		s.byHand(),
	} {
		if err != nil {
			return nil, err
		}
	}
	var err error
	s.durations, err = c.Meter.Float64Histogram("http.server.request.duration", metric.WithUnit("s"), metric.WithDescription("Time of requests, by route and status."))
	if err != nil {
		return nil, err
	}
	if s.routes, err = documented(); err != nil {
		return nil, err
	}
	s.http = s.chain(s.toPorts(shielded(s.legible(s.open(s.authenticated(s.understood(limited(s.mux))))))))
	return s, nil
}

// nothing lets no header through to metadata, nor back.
func nothing(string) (string, bool) { return "", false }

// marshal is how answers are written: with the names of the proto files, and with zero values, so that a field is always there.
var marshal = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}

// unmarshal refuses fields that do not exist.
var unmarshal = protojson.UnmarshalOptions{}

// byHand registers the routes that are not generated. Where a generated one has the same path, these win.
func (s *Server) byHand() error {
	const sb = "/v1/sandboxes/{sandbox_id}"
	for _, r := range []struct {
		method, path string
		handle       handler
	}{
		{http.MethodGet, "/v1/sandboxes:watch", s.watchSandboxes},
		{http.MethodPost, "/v1/hosts/{host_id}/drain", s.drainHost},
		{http.MethodGet, sb + "/exec/stream", s.execStream},
		{http.MethodPost, sb + "/files/write", s.writeForm},
		{http.MethodPost, sb + "/files/stream/write", s.writeStream},
		{http.MethodPost, sb + "/files/read", s.readFile},
		{http.MethodPost, sb + "/files/stream/read", s.readFile},
		{http.MethodGet, sb + "/files/stream/read", s.readFileByQuery},
		{http.MethodGet, sb + "/files/watch", s.watchFiles},
		{http.MethodPost, sb + "/ports/{port}/token", s.portToken},
		{http.MethodGet, sb + "/logs", s.logs},
		{http.MethodGet, "/metrics", s.ownMetrics},
	} {
		if err := s.mux.HandlePath(r.method, r.path, s.answer(r.handle)); err != nil {
			return err
		}
	}
	return nil
}

// handler serves one request. An error that it returns is the answer, unless it has begun one.
type handler func(w http.ResponseWriter, r *http.Request, params map[string]string) error

func (s *Server) answer(h handler) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, params map[string]string) {
		if err := h(w, r, params); err != nil {
			s.fail(w, r, err)
		}
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.http.ServeHTTP(w, r) }

// Wait returns when all WebSockets have ended, which net/http does not wait for. Draining must be closed.
func (s *Server) Wait() { s.sockets.Wait() }
