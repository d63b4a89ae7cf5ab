package consul

import (
	"context"
	"net"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"
)

// checkTime is the least that a health check may take. A daemon on a busy machine is slow to answer and not gone; one that is gone refuses the connection at
// once, and one that is cut off is missed by those that it speaks to.
const checkTime = 5 * time.Second

// leaveTime bounds the deregistration, which may meet a Consul that is gone.
const leaveTime = 2 * time.Second

// Registration is how a daemon stands in Consul.
type Registration struct {
	ID   string
	Name string
	Host string
	Port int
	Meta map[string]string
	// CheckInterval is how often Consul calls the daemon's gRPC health service.
	CheckInterval time.Duration
	// DeregisterAfter is how long the check may fail until Consul forgets the daemon.
	DeregisterAfter time.Duration
	// TLS says that the health check must use it.
	TLS bool
	// Passing says what the check's state is until Consul has made it for the first time.
	Passing func() bool
}

func (r Registration) encode() *api.AgentServiceRegistration {
	addr := net.JoinHostPort(r.Host, strconv.Itoa(r.Port))
	status := api.HealthCritical
	if r.Passing() {
		status = api.HealthPassing
	}
	return &api.AgentServiceRegistration{
		ID: r.ID, Name: r.Name, Address: r.Host, Port: r.Port, Meta: r.Meta,
		Check: &api.AgentServiceCheck{
			CheckID: "grpc:" + r.ID, Name: "gRPC health", GRPC: addr, GRPCUseTLS: r.TLS, TLSSkipVerify: r.TLS,
			Interval: r.CheckInterval.String(), Timeout: max(r.CheckInterval, checkTime).String(),
			DeregisterCriticalServiceAfter: r.DeregisterAfter.String(), Status: status,
		},
	}
}

// Keep registers the daemon, registers it again whenever Consul has lost it, and deregisters it when ctx ends.
func (c *Client) Keep(ctx context.Context, r Registration) {
	var p pause
	for ctx.Err() == nil {
		err := c.stay(ctx, r, &p)
		if ctx.Err() != nil {
			break
		}
		c.log.Warn("not registered in Consul; trying again", "consul", c.address, "id", r.ID, "error", err)
		p.wait(ctx, nil)
	}
	c.leave(context.WithoutCancel(ctx), r.ID)
}

// stay registers and returns when Consul no longer knows the daemon or cannot be asked.
func (c *Client) stay(ctx context.Context, r Registration, p *pause) error {
	opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
	if err := c.api.Agent().ServiceRegisterOpts(r.encode(), opts); err != nil {
		return err
	}
	c.log.Debug("registered in Consul", "id", r.ID)
	hash := ""
	for {
		// Answered when the registration changes, which includes its end.
		_, meta, err := c.api.Agent().Service(r.ID, (&api.QueryOptions{WaitHash: hash, WaitTime: waitTime}).WithContext(ctx))
		if err != nil {
			return err
		}
		p.reset()
		hash = meta.LastContentHash
	}
}

func (c *Client) leave(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	if err := c.api.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		c.log.Warn("not deregistered from Consul, which will notice by its check", "id", id, "error", err)
	}
}
