package consul

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc/resolver"
)

// Scheme is that of targets that this package resolves.
const Scheme = "consul"

// Target is the gRPC target of a service.
func Target(service string) string { return Scheme + ":///" + service }

// Resolver makes gRPC resolvers that follow the passing instances of services.
func (c *Client) Resolver() resolver.Builder { return builder{c} }

type builder struct{ client *Client }

// Scheme implements resolver.Builder.
func (builder) Scheme() string { return Scheme }

// Build implements resolver.Builder.
func (b builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	service := target.Endpoint()
	if service == "" {
		return nil, fmt.Errorf("target %q names no service", target.URL.String())
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{service: service, cc: cc, cancel: cancel, wake: make(chan struct{}, 1)}
	f.watching.Go(func() { b.client.Watch(ctx, service, f.wake, f.update) })
	return f, nil
}

// follower tells one connection the addresses of its service.
type follower struct {
	service  string
	cc       resolver.ClientConn
	cancel   context.CancelFunc
	wake     chan struct{}
	watching sync.WaitGroup
	had      bool // there were addresses once; owned by the watch
}

func (f *follower) update(list []Instance, err error) {
	if err != nil {
		if len(list) == 0 {
			f.cc.ReportError(fmt.Errorf("instances of %s are not known: %w", f.service, err))
		}
		return // What was known stays in force.
	}
	var addrs []resolver.Address
	for _, i := range list {
		if i.Passing {
			addrs = append(addrs, resolver.Address{Addr: i.Address})
		}
	}
	if len(addrs) == 0 {
		f.cc.ReportError(fmt.Errorf("no instance of %s passes its health check", f.service))
	}
	if len(addrs) > 0 || f.had {
		f.had = true
		// An error asks for a new attempt, and the next change in Consul is one.
		_ = f.cc.UpdateState(resolver.State{Addresses: addrs})
	}
}

// ResolveNow implements resolver.Resolver: it ends a pause between attempts to reach Consul.
func (f *follower) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Close implements resolver.Resolver.
func (f *follower) Close() {
	f.cancel()
	f.watching.Wait()
}
