package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	consul "github.com/hashicorp/consul/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// idleFor is how long clones are left alone before they are measured.
const idleFor = 5 * time.Second

// benchDensity makes 50 clones of one template, leaves them alone, and measures what each has for itself.
func benchDensity(ctx context.Context, e *env) (map[string]float64, error) {
	ctx, err := e.start(ctx, 1)
	if err != nil {
		return nil, err
	}
	const clones = 50
	sb, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: "base", MemoryMb: 192})
	if err != nil {
		return nil, err
	}
	if err := e.snapshot(ctx, sb.GetId(), "dense"); err != nil {
		return nil, err
	}
	if err := e.delete(ctx, sb.GetId()); err != nil {
		return nil, err
	}
	var list []*sandboxv1.Sandbox
	for i := range clones {
		sb, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: "dense"})
		if err != nil {
			return nil, fmt.Errorf("clone %d: %w", i+1, err)
		}
		list = append(list, sb)
		if (i+1)%10 == 0 {
			fmt.Printf("  %d clones\n", i+1)
		}
	}
	select {
	case <-time.After(idleFor):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	private, host, err := e.memoryOf(ctx, list)
	if err != nil {
		return nil, err
	}
	private.row("private guest memory of a clone", "KiB")
	host.row("host memory of a clone, shares included", "KiB")
	alive := 0
	for _, sb := range list {
		if _, err := e.exec(ctx, sb.GetId(), "true"); err != nil {
			fmt.Printf("  %s does not answer: %v\n", sb.GetId(), err)
			continue
		}
		alive++
	}
	fmt.Printf("  %d of %d answer\n", alive, clones)
	return map[string]float64{"density_private_p50_kib": private.median(), "density_host_p50_kib": host.median(), "density_alive": float64(alive)}, e.deleteAll(ctx, list)
}

// memoryOf asks the host agent what each sandbox has, KiB.
func (e *env) memoryOf(ctx context.Context, list []*sandboxv1.Sandbox) (private, host series, err error) {
	agent, done, err := e.agent()
	if err != nil {
		return nil, nil, err
	}
	defer done()
	for _, sb := range list {
		m, err := agent.GetSandboxMetrics(ctx, &hostv1.GetSandboxMetricsRequest{SandboxId: sb.GetId()})
		if err != nil {
			return nil, nil, fmt.Errorf("metrics of %s: %w", sb.GetId(), err)
		}
		private = append(private, float64(m.GetGuestPrivateBytes())/1024)
		host = append(host, float64(m.GetHostPssBytes())/1024)
	}
	return private, host, nil
}

// agent dials the mesh's first host agent, as sandboxd does.
func (e *env) agent() (hostv1.HostServiceClient, func() error, error) {
	c := consul.DefaultConfig()
	c.Address = e.m.ConsulAddr
	client, err := consul.NewClient(c)
	if err != nil {
		return nil, nil, err
	}
	found, _, err := client.Health().Service("covey-host", "", true, nil)
	if err != nil {
		return nil, nil, err
	}
	if len(found) == 0 {
		return nil, nil, errors.New("no healthy host agent in Consul")
	}
	conn, err := grpc.NewClient(net.JoinHostPort(found[0].Service.Address, strconv.Itoa(found[0].Service.Port)), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return hostv1.NewHostServiceClient(conn), conn.Close, nil
}
