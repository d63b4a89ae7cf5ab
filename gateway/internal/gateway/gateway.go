// Package gateway is gatewayd: it joins keys, data plane, REST and native gRPC on one port of one chassis.
//
// A connection whose first request is gRPC's is the gRPC server's, any other one HTTP's, /1.1 or /2, with TLS or without (chassis.WithHTTP): neither goes
// through the other's server. Rejected: grpc.Server as an http.Handler, which is slower and lacks half of its options.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/gateway/internal/audit"
	"github.com/coveyhq/covey/gateway/internal/dataplane"
	"github.com/coveyhq/covey/gateway/internal/forward"
	"github.com/coveyhq/covey/gateway/internal/limit"
	"github.com/coveyhq/covey/gateway/internal/ports"
	"github.com/coveyhq/covey/gateway/internal/rest"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/consul"
	"github.com/coveyhq/covey/services/chassis/page"
	"github.com/coveyhq/covey/services/chassis/relay"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// Gateway is one gatewayd. Its Daemon must be run or closed.
type Gateway struct {
	Daemon *chassis.Daemon

	keys   *access.Keys
	events *audit.Log
	hosts  *dataplane.Hosts
	web    *rest.Server

	sandboxes, scheduler, snapshots *grpc.ClientConn
}

// New makes everything and listens to nothing yet.
func New(c Config, opts ...chassis.Option) (_ *Gateway, err error) {
	if err := c.Ports.validate(); err != nil {
		return nil, fmt.Errorf("ports: %w", err)
	}
	g := &Gateway{}
	// What the daemon calls is made of the daemon's connections; nothing calls before it runs.
	passing := relay.New(dataplane.Allowed, func(ctx context.Context, method, id string, refresh bool) (*grpc.ClientConn, func(), error) {
		return g.hosts.Resolve(ctx, method, id, refresh)
	}, relay.Hooks{Observe: func(ctx context.Context, method string, first func() []byte) func(error) {
		return g.events.Observe(ctx, method, first)
	}})
	opts = append([]chassis.Option{
		chassis.WithPublic(), chassis.WithRelay(passing),
		chassis.WithAuth(func(ctx context.Context, method string) (context.Context, error) { return g.keys.Auth(ctx, method) }),
		chassis.WithHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.web.ServeHTTP(w, r) })),
	}, opts...)
	if err := c.TLS.validate(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	var cert *certificate
	if c.TLS.CertFile != "" {
		opts = append(opts, chassis.WithTLS(func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return cert.get(h) }))
	}
	if g.Daemon, err = chassis.New(c.Chassis, opts...); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Daemon.Close())
		}
	}()
	if c.TLS.CertFile != "" {
		if cert, err = newCertificate(c.TLS, g.Daemon.Log()); err != nil {
			return nil, err
		}
	}
	if err := g.dial(); err != nil {
		return nil, err
	}
	if err := g.audit(); err != nil {
		return nil, err
	}
	locator := sandboxv1.NewLocatorServiceClient(g.sandboxes)
	g.keys = access.New(lookup(locator))
	if err := g.limit(c.Rates); err != nil {
		return nil, err
	}
	g.keys.OnRefusal = g.refused
	g.hosts = dataplane.NewHosts(locator, g.Daemon.DialAddr)
	b := g.behind()
	if g.web, err = rest.New(g.restConfig(c, b)); err != nil {
		return nil, err
	}
	g.Daemon.Defer(func() error {
		g.web.Wait()
		return nil
	})
	s := g.Daemon.Server()
	forward.Register(s, g.keys.Guard(b.sandboxes), &sandboxv1.SandboxService_ServiceDesc, &sandboxv1.KeyService_ServiceDesc,
		&sandboxv1.OperationsService_ServiceDesc, &sandboxv1.TenantService_ServiceDesc)
	forward.Register(s, g.keys.Guard(b.snapshots), &snapshotv1.SnapshotService_ServiceDesc)
	forward.Register(s, g.keys.Guard(b.scheduler), &schedulerv1.HostsService_ServiceDesc)
	return g, nil
}

func (g *Gateway) dial() (err error) {
	for service, conn := range map[string]**grpc.ClientConn{
		caller.Sandbox: &g.sandboxes, caller.Scheduler: &g.scheduler, caller.Snapshot: &g.snapshots,
	} {
		if *conn, err = g.Daemon.Dial(service); err != nil {
			return err
		}
	}
	return nil
}

// services are what is behind the gateway, for calls of clients: what they do is audited, here or there.
type services struct{ sandboxes, scheduler, snapshots, data grpc.ClientConnInterface }

func (g *Gateway) behind() services {
	data := g.events.Data(dataplane.NewConn(g.hosts))
	return services{
		sandboxes: dataplane.Public(g.sandboxes, data, g.hosts), data: data,
		scheduler: g.events.Control(g.scheduler), snapshots: g.events.Control(g.snapshots),
	}
}

// audit makes the log and has it run until the daemon's calls have ended.
func (g *Gateway) audit() (err error) {
	client := sandboxv1.NewAuditServiceClient(g.sandboxes)
	g.events, err = audit.New(func(ctx context.Context, records []*sandboxv1.AuditRecord) error {
		ctx, cancel := context.WithTimeout(ctx, auditTime)
		defer cancel()
		// A sandbox service that is being replaced is waited for: the same event may be written twice.
		_, err := client.WriteAuditEvents(ctx, &sandboxv1.WriteAuditEventsRequest{Records: records}, grpc.WaitForReady(true))
		return err
	}, g.Daemon.Log(), g.Daemon.Telemetry().Meters.Meter("covey/gateway"))
	if err != nil {
		return err
	}
	g.beside(g.events.Run)
	return nil
}

// limit bounds the rates of calls, and divides them among the gateways that are healthy.
func (g *Gateway) limit(r RatesConfig) error {
	limits := limit.New(r.Key, r.Tenant)
	g.keys.Limit = func(c access.Caller) error { return limits.Allow(c.Tenant, c.KeyID) }
	_, err := g.Daemon.Telemetry().Meters.Meter("covey/gateway").Int64ObservableGauge("covey.rates.gateways",
		metric.WithDescription("Gateways among which the rates of keys and tenants are divided."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(limits.Sharers()))
			return nil
		}))
	if err != nil {
		return err
	}
	if g.Daemon.Consul() == nil {
		return nil // Nobody tells of other gateways.
	}
	g.beside(func(ctx context.Context) {
		g.Daemon.Watch(ctx, caller.Gateway, func(list []consul.Instance, err error) {
			if err != nil {
				return // What was known stays in force.
			}
			passing := 0
			for _, i := range list {
				if i.Passing {
					passing++
				}
			}
			limits.Share(passing)
		})
	})
	return nil
}

// beside runs something until the daemon's calls have ended.
func (g *Gateway) beside(run func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { run(ctx) })
	g.Daemon.Defer(func() error {
		cancel()
		running.Wait()
		return nil
	})
}

// auditTime bounds the writing of events, and so how long a call waits until it is refused for want of a log.
const auditTime = 3 * time.Second

// refused has a refusal counted in the audit log.
func (g *Gateway) refused(ctx context.Context, r access.Refusal) {
	e := audit.Event{Tenant: r.Caller.Tenant, KeyID: r.Caller.KeyID, RequestID: tenant.RequestID(ctx), Method: r.Method()}
	if strings.HasPrefix(e.Method, "/") {
		e.Method = e.Method[strings.LastIndexByte(e.Method, '/')+1:]
	}
	if r.Caller.KeyID == "" {
		from, _, err := net.SplitHostPort(r.From)
		if err != nil {
			from = r.From
		}
		if e.Detail = "no key, from " + from; r.Key != "" {
			e.Detail = "key " + r.Key + ", from " + from
		}
	}
	g.events.Tally(e, r.Err)
}

func (g *Gateway) restConfig(c Config, b services) rest.Config {
	tel := g.Daemon.Telemetry()
	return rest.Config{
		Sandboxes: b.sandboxes, Scheduler: b.scheduler, Snapshots: b.snapshots,
		Data: b.data, Locate: g.hosts.Locate, Keys: g.keys, Audit: g.events,
		Checks: map[string]func(context.Context) error{
			caller.Sandbox: healthy(g.sandboxes), caller.Scheduler: healthy(g.scheduler), caller.Snapshot: healthy(g.snapshots),
			caller.Host: aHost(g.scheduler),
		},
		Ports: ports.NewSigner(string(c.Ports.Secret)), PortDomain: c.Ports.domain(), PortsByHost: c.Ports.Domain != "",
		Metrics: promhttp.HandlerFor(tel.Registry, promhttp.HandlerOpts{}), OpenMetrics: c.OpenMetrics,
		Draining: g.Daemon.Draining(), Tracer: tel.Tracers.Tracer("covey/gateway"), Meter: tel.Meters.Meter("covey/gateway"), Propagator: tel.Propagator, Log: g.Daemon.Log(),
	}
}

func lookup(l sandboxv1.LocatorServiceClient) access.Lookup {
	return func(ctx context.Context, secret string) (access.Caller, error) {
		res, err := l.Authenticate(ctx, &sandboxv1.AuthenticateRequest{ApiKey: secret})
		return access.Caller{Tenant: res.GetTenantId(), KeyID: res.GetKeyId(), Scopes: res.GetScopes()}, err
	}
}

// healthy asks a service whether it serves.
func healthy(conn *grpc.ClientConn) func(context.Context) error {
	return func(ctx context.Context) error {
		res, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		if err == nil && res.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			err = fmt.Errorf("it says %s", res.GetStatus())
		}
		return err
	}
}

// aHost asks the scheduler whether there is a host that takes sandboxes.
func aHost(conn *grpc.ClientConn) func(context.Context) error {
	return func(ctx context.Context) error {
		n := 0
		q := &schedulerv1.ListHostsRequest{PageSize: 1000}
		for res, err := range page.Each(&q.PageToken, func() (*schedulerv1.ListHostsResponse, error) {
			return schedulerv1.NewHostsServiceClient(conn).ListHosts(ctx, q)
		}) {
			if err != nil {
				return err
			}
			for _, h := range res.GetHosts() {
				if h.GetState() == schedulerv1.HostState_HOST_STATE_READY {
					return nil
				}
			}
			n += len(res.GetHosts())
		}
		return fmt.Errorf("none of %d hosts is ready", n)
	}
}
