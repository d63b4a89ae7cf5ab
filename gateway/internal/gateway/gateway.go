// Package gateway is gatewayd: it joins keys, data plane, REST and native gRPC on one port of one chassis.
//
// An HTTP/2 connection is gRPC's from its first byte, any other one is HTTP's (chassis.WithHTTP): neither goes through the other's server. Rejected:
// grpc.Server as an http.Handler, which is slower and lacks half of its options.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/gateway/internal/dataplane"
	"github.com/coveyhq/covey/gateway/internal/forward"
	"github.com/coveyhq/covey/gateway/internal/limit"
	"github.com/coveyhq/covey/gateway/internal/ports"
	"github.com/coveyhq/covey/gateway/internal/rest"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/relay"
)

// Gateway is one gatewayd. Its Daemon must be run or closed.
type Gateway struct {
	Daemon *chassis.Daemon

	keys  *access.Keys
	hosts *dataplane.Hosts
	web   *rest.Server

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
	}, relay.Hooks{})
	opts = append([]chassis.Option{
		chassis.WithPublic(), chassis.WithRelay(passing),
		chassis.WithAuth(func(ctx context.Context, method string) (context.Context, error) { return g.keys.Auth(ctx, method) }),
		chassis.WithHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.web.ServeHTTP(w, r) })),
	}, opts...)
	if g.Daemon, err = chassis.New(c.Chassis, opts...); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Daemon.Close())
		}
	}()
	if err := g.dial(); err != nil {
		return nil, err
	}
	locator := sandboxv1.NewLocatorServiceClient(g.sandboxes)
	g.keys = access.New(lookup(locator))
	limits := limit.New(c.Rates.Key, c.Rates.Tenant)
	g.keys.Limit = func(c access.Caller) error { return limits.Allow(c.Tenant, c.KeyID) }
	g.hosts = dataplane.NewHosts(locator, g.Daemon.DialAddr)
	if g.web, err = rest.New(g.restConfig(c)); err != nil {
		return nil, err
	}
	g.Daemon.Defer(func() error {
		g.web.Wait()
		return nil
	})
	s := g.Daemon.Server()
	forward.Register(s, g.keys.Guard(g.sandboxes), &sandboxv1.SandboxService_ServiceDesc, &sandboxv1.KeyService_ServiceDesc,
		&sandboxv1.OperationsService_ServiceDesc, &sandboxv1.TenantService_ServiceDesc)
	forward.Register(s, g.keys.Guard(g.snapshots), &snapshotv1.SnapshotService_ServiceDesc)
	forward.Register(s, g.keys.Guard(g.scheduler), &schedulerv1.HostsService_ServiceDesc)
	return g, nil
}

func (g *Gateway) dial() (err error) {
	for service, conn := range map[string]**grpc.ClientConn{
		"covey-sandbox": &g.sandboxes, "covey-scheduler": &g.scheduler, "covey-snapshot": &g.snapshots,
	} {
		if *conn, err = g.Daemon.Dial(service); err != nil {
			return err
		}
	}
	return nil
}

func (g *Gateway) restConfig(c Config) rest.Config {
	tel := g.Daemon.Telemetry()
	return rest.Config{
		Sandboxes: g.sandboxes, Scheduler: g.scheduler, Snapshots: g.snapshots,
		Data: dataplane.NewConn(g.hosts), Locate: g.hosts.Locate, Keys: g.keys,
		Checks: map[string]func(context.Context) error{
			"covey-sandbox": healthy(g.sandboxes), "covey-scheduler": healthy(g.scheduler), "covey-snapshot": healthy(g.snapshots),
			"covey-host": aHost(g.scheduler),
		},
		Ports: ports.NewSigner(string(c.Ports.Secret)), PortDomain: c.Ports.Domain,
		Metrics:  promhttp.HandlerFor(tel.Registry, promhttp.HandlerOpts{}),
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
		res, err := schedulerv1.NewHostsServiceClient(conn).ListHosts(ctx, &schedulerv1.ListHostsRequest{})
		if err != nil {
			return err
		}
		for _, h := range res.GetHosts() {
			if h.GetState() == schedulerv1.HostState_HOST_STATE_READY {
				return nil
			}
		}
		return fmt.Errorf("none of %d hosts is ready", len(res.GetHosts()))
	}
}
