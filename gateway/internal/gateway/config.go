package gateway

import (
	"fmt"
	"regexp"
	"time"

	"github.com/coveyhq/covey/gateway/internal/limit"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/caller"
)

// Config is gatewayd's configuration file.
type Config struct {
	// Chassis is what all daemons have. Its listen is the one port for REST, WebSocket and native gRPC.
	Chassis chassis.Config `yaml:"chassis"`
	// TLS is for clients; default none. Between daemons it is chassis.tls.
	TLS TLSConfig `yaml:"tls"`
	// Ports is how programs in sandboxes are reached.
	Ports PortsConfig `yaml:"ports"`
	// OpenMetrics serves /metrics on the public port to all. By default it is for keys of scope admin there; chassis.metrics_listen serves it without keys,
	// for those who can reach that address.
	OpenMetrics bool `yaml:"open_metrics"`
	// Rates bound the calls of each key and of each tenant, requests to ports too, on all gateways of the mesh together; all need the same here. Default: none.
	Rates RatesConfig `yaml:"rates"`
}

// RatesConfig are the rates of calls.
type RatesConfig struct {
	Key    limit.Rate `yaml:"key"`
	Tenant limit.Rate `yaml:"tenant"`
}

// PortsConfig says how ports in sandboxes are named and their tokens signed.
type PortsConfig struct {
	// Domain is what the ports' host names end in: {port}-{sandbox id}.<domain>. All of them must resolve to the gateway. Where it
	// is set, browsers that come by path are sent there. Default covey.localhost, for browsers on the gateway's machine.
	Domain string `yaml:"domain"`
	// Secret signs the tokens, 32 bytes or more; all gateways of a mesh need the same one. Empty means one that this process makes up.
	Secret chassis.Secret `yaml:"secret"`
}

// portDomain is what browsers resolve to the machine that they run on.
const portDomain = "covey.localhost"

// domain is a DNS name of at least two labels, in lower case.
var domain = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// domain is the configured one or the default.
func (c *PortsConfig) domain() string {
	if c.Domain == "" {
		return portDomain
	}
	return c.Domain
}

func (c *PortsConfig) validate() error {
	if !domain.MatchString(c.domain()) {
		return fmt.Errorf("domain: must be a DNS name in lower case like %s, got %q", portDomain, c.Domain)
	}
	if n := len(c.Secret); n > 0 && n < 32 {
		return fmt.Errorf("secret: must have at least 32 bytes, has %d", n)
	}
	return nil
}

// deadline is that of native unary calls which bring none. It is longer than that of the services behind, whose answer says more.
const deadline = 10 * time.Minute

// LoadConfig reads a configuration file.
func LoadConfig(path string) (Config, error) {
	c := Config{Chassis: chassis.Config{Service: caller.Gateway, Deadline: deadline}}
	err := chassis.LoadConfig(path, &c)
	return c, err
}

// Validate says all that is wrong with the configuration.
func (c *Config) Validate() error {
	if err := c.Chassis.Validate(); err != nil {
		return fmt.Errorf("chassis: %w", err)
	}
	if err := c.Ports.validate(); err != nil {
		return fmt.Errorf("ports: %w", err)
	}
	if err := c.TLS.validate(); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	if err := c.Rates.Key.Validate(); err != nil {
		return fmt.Errorf("rates: key: %w", err)
	}
	if err := c.Rates.Tenant.Validate(); err != nil {
		return fmt.Errorf("rates: tenant: %w", err)
	}
	return nil
}
