package chassis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/retry"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/consul"
	"github.com/coveyhq/covey/services/chassis/relay"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// Dial makes a connection to a service: calls go round robin to its instances that pass their health checks, or without Consul to those in Peers.
// The daemon closes it at its end.
func (d *Daemon) Dial(service string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	target, b, err := d.resolver(service)
	if err != nil {
		return nil, err
	}
	opts = append([]grpc.DialOption{grpc.WithResolvers(b), grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`)}, opts...)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dial(target, service, opts...)
}

// resolver finds a service's instances.
func (d *Daemon) resolver(service string) (string, resolver.Builder, error) {
	if d.consul != nil {
		return consul.Target(service), d.consul.Resolver(), nil
	}
	peers := d.cfg.Peers[service]
	if len(peers) == 0 {
		return "", nil, fmt.Errorf("peers: must list the addresses of %s, as consul.address is empty", service)
	}
	b := manual.NewBuilderWithScheme("peers")
	var st resolver.State
	for _, p := range peers {
		st.Addresses = append(st.Addresses, resolver.Address{Addr: p})
	}
	b.InitialState(st)
	return "peers:///" + service, b, nil
}

// DialAddr makes the connection to the host agent at an address, or returns the one that there is. The daemon closes it at its end.
func (d *Daemon) DialAddr(addr string) (*grpc.ClientConn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.byAddr[addr]; c != nil {
		return c, nil
	}
	c, err := d.dial("passthrough:///"+addr, caller.Host)
	if err != nil {
		return nil, err
	}
	d.byAddr[addr] = c
	return c, nil
}

// dial makes a connection that the daemon owns. mu is held.
func (d *Daemon) dial(target, service string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	if d.closed {
		return nil, errors.New("the daemon is closed")
	}
	c, err := d.connect(target, service, opts...)
	if err == nil {
		d.conns = append(d.conns, c)
	}
	return c, err
}

// connect makes a connection that the caller owns.
func (d *Daemon) connect(target, service string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	opts = append([]grpc.DialOption{
		grpc.WithTransportCredentials(d.clientCredentials(service)),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(d.otel()...)),
		grpc.WithChainUnaryInterceptor(outgoingUnary, retryReads),
		grpc.WithChainStreamInterceptor(outgoingStream),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(relay.MaxMessage), grpc.MaxCallSendMsgSize(relay.MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	}, opts...)
	c, err := grpc.NewClient(target, opts...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", service, err)
	}
	return c, nil
}

func outgoingUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return next(tenant.Outgoing(ctx), method, req, reply, cc, opts...)
}

func outgoingStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return next(tenant.Outgoing(ctx), desc, cc, method, opts...)
}

// retryReads makes calls that only read again where nobody could be reached. Of others it is not known what they did.
var retryReads = selector.UnaryClientInterceptor(retry.UnaryClientInterceptor(
	retry.WithMax(4), retry.WithCodes(codes.Unavailable), retry.WithBackoff(retry.BackoffExponentialWithJitter(50*time.Millisecond, 0.2)),
	retry.WithOnRetryCallback(func(context.Context, uint, error) {}),
), selector.MatchFunc(reads))

// reads tells methods that change nothing, by the verbs that our protos keep to.
func reads(_ context.Context, c interceptors.CallMeta) bool {
	for _, verb := range []string{"Get", "List", "Locate", "Explain", "Stat", "Has"} {
		if strings.HasPrefix(c.Method, verb) {
			return true
		}
	}
	return false
}

// Watch calls fn with the instances of a service that Consul knows, passing or not, at first and whenever they change, until ctx ends. While Consul cannot
// be asked, fn gets what is known and the error. Without Consul fn is called once, with Peers.
func (d *Daemon) Watch(ctx context.Context, service string, fn func([]consul.Instance, error)) {
	if d.consul != nil {
		d.consul.Watch(ctx, service, nil, fn)
		return
	}
	var list []consul.Instance
	for _, p := range d.cfg.Peers[service] {
		list = append(list, consul.Instance{ID: service + "-" + p, Address: p, Passing: true})
	}
	fn(list, nil)
	<-ctx.Done()
}
