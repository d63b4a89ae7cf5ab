package main

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
	"github.com/coveyhq/covey/gateway/internal/rest"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/relay"
)

// Main is one gatewayd. Its daemon must be run or closed.
type Main struct {
	daemon *chassis.Daemon
	keys   *access.Keys
	hosts  *dataplane.Hosts
	web    *rest.Server

	sandboxes, scheduler, snapshots *grpc.ClientConn
}

// newMain makes everything and listens to nothing yet.
func newMain(c Config, opts ...chassis.Option) (_ *Main, err error) {
	m := &Main{}
	// What the daemon calls is made of the daemon's connections; nothing calls before it runs.
	passing := relay.New(dataplane.Allowed, func(ctx context.Context, method, id string, refresh bool) (*grpc.ClientConn, func(), error) {
		return m.hosts.Resolve(ctx, method, id, refresh)
	}, relay.Hooks{})
	opts = append([]chassis.Option{
		chassis.WithPublic(), chassis.WithRelay(passing),
		chassis.WithAuth(func(ctx context.Context, method string) (context.Context, error) { return m.keys.Auth(ctx, method) }),
		chassis.WithHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.web.ServeHTTP(w, r) })),
	}, opts...)
	if m.daemon, err = chassis.New(c.Chassis, opts...); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.daemon.Close())
		}
	}()
	if err := m.dial(); err != nil {
		return nil, err
	}
	locator := sandboxv1.NewLocatorServiceClient(m.sandboxes)
	m.keys = access.New(lookup(locator))
	m.hosts = dataplane.NewHosts(locator, m.daemon.DialAddr)
	if m.web, err = rest.New(m.restConfig()); err != nil {
		return nil, err
	}
	m.daemon.Defer(func() error {
		m.web.Wait()
		return nil
	})
	s := m.daemon.Server()
	forward.Register(s, m.keys.Guard(m.sandboxes), &sandboxv1.SandboxService_ServiceDesc, &sandboxv1.KeyService_ServiceDesc)
	forward.Register(s, m.keys.Guard(m.snapshots), &snapshotv1.SnapshotService_ServiceDesc)
	forward.Register(s, m.keys.Guard(m.scheduler), &schedulerv1.HostsService_ServiceDesc)
	return m, nil
}

func (m *Main) dial() (err error) {
	for service, conn := range map[string]**grpc.ClientConn{
		"covey-sandbox": &m.sandboxes, "covey-scheduler": &m.scheduler, "covey-snapshot": &m.snapshots,
	} {
		if *conn, err = m.daemon.Dial(service); err != nil {
			return err
		}
	}
	return nil
}

func (m *Main) restConfig() rest.Config {
	tel := m.daemon.Telemetry()
	return rest.Config{
		Sandboxes: m.sandboxes, Scheduler: m.scheduler, Snapshots: m.snapshots,
		Data: dataplane.NewConn(m.hosts), Locate: m.hosts.Locate, Keys: m.keys,
		Checks: map[string]func(context.Context) error{
			"covey-sandbox": healthy(m.sandboxes), "covey-scheduler": healthy(m.scheduler), "covey-snapshot": healthy(m.snapshots),
			"covey-host": aHost(m.scheduler),
		},
		Metrics:  promhttp.HandlerFor(tel.Registry, promhttp.HandlerOpts{}),
		Draining: m.daemon.Draining(), Tracer: tel.Tracers.Tracer("covey/gateway"), Propagator: tel.Propagator, Log: m.daemon.Log(),
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
