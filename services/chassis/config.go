package chassis

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/coveyhq/covey/services/chassis/telemetry"
)

// Config is what all daemons have in their configuration. Absent values mean the defaults given here.
type Config struct {
	// Service is the name in Consul, in traces and in the daemon's identity, like "covey-scheduler".
	Service string `yaml:"service"`
	// Listen is the gRPC address, host:port. Default 127.0.0.1:0.
	Listen string `yaml:"listen"`
	// Advertise is the address that others reach this daemon at; port 0 stands for the one that is listened on. Default: Listen.
	Advertise string `yaml:"advertise"`
	// MetricsListen is the HTTP address of /metrics, /healthz and /readyz. Default: none.
	MetricsListen string `yaml:"metrics_listen"`
	// Deadline is that of unary calls which bring none. Default 60s.
	Deadline time.Duration `yaml:"deadline"`
	// Drain is how long calls may go on after the daemon was told to end. Default 5s.
	Drain time.Duration `yaml:"drain"`
	// Peers are addresses of services, used where Consul is off.
	Peers map[string][]string `yaml:"peers"`

	Consul    ConsulConfig     `yaml:"consul"`
	TLS       TLSConfig        `yaml:"tls"`
	Log       LogConfig        `yaml:"log"`
	Telemetry telemetry.Config `yaml:"telemetry"`
}

// ConsulConfig says how to reach Consul and how to stand in it.
type ConsulConfig struct {
	// Address is Consul's HTTP address, host:port. Empty means no Consul: nothing is registered, and services are found in Peers.
	Address string `yaml:"address"`
	// Token is the ACL token. It must allow to write the service; with tls.mode consul also what the certificate names, for a host agent covey-host-<host id>.
	Token Secret `yaml:"token"`
	// CheckInterval is how often Consul checks this daemon's health. Default 2s.
	CheckInterval time.Duration `yaml:"check_interval"`
	// DeregisterAfter is how long the check may fail until Consul forgets this daemon. Default, and least that Consul takes: 1m.
	DeregisterAfter time.Duration `yaml:"deregister_after"`
}

// TLSConfig says how daemons know each other.
type TLSConfig struct {
	// Mode is "off" (the default), or "consul": mutual TLS between daemons, with identities from Consul's own authority.
	Mode string `yaml:"mode"`
}

// TLS modes.
const (
	TLSOff    = "off"
	TLSConsul = "consul"
)

// LogConfig says what is logged, to standard error.
type LogConfig struct {
	// Level is the least level: debug, info (the default), warn or error.
	Level string `yaml:"level"`
	// Format is json (the default) or text.
	Format string `yaml:"format"`
}

// Secret is a string that is not shown where its holder is printed or logged.
type Secret string

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(secret)"
}

// GoString hides the secret.
func (s Secret) GoString() string { return s.String() }

var serviceName = regexp.MustCompile(`^covey-[a-z][a-z0-9-]{0,40}$`)

// withDefaults fills in what was left out.
func (c Config) withDefaults() Config {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.Listen, "127.0.0.1:0")
	def(&c.TLS.Mode, TLSOff)
	def(&c.Log.Level, "info")
	def(&c.Log.Format, "json")
	for d, v := range map[*time.Duration]time.Duration{
		&c.Deadline: time.Minute, &c.Drain: 5 * time.Second, &c.Consul.CheckInterval: 2 * time.Second, &c.Consul.DeregisterAfter: time.Minute,
	} {
		if *d == 0 {
			*d = v
		}
	}
	return c
}

// Validate says all that is wrong with a configuration, each with its key and what is legal.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
	}
	if !serviceName.MatchString(c.Service) {
		bad("service", "must be like \"covey-scheduler\", got %q", c.Service)
	}
	for key, addr := range map[string]string{"listen": c.Listen, "advertise": c.Advertise, "metrics_listen": c.MetricsListen, "consul.address": c.Consul.Address} {
		if addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			bad(key, "must be host:port, got %q", addr)
		}
	}
	if host, _, err := net.SplitHostPort(c.Listen); err == nil && c.Advertise == "" && c.Consul.Address != "" && everywhere(host) {
		bad("advertise", "must be set, because listen %q is not an address that others can dial", c.Listen)
	}
	for key, d := range map[string]time.Duration{"deadline": c.Deadline, "drain": c.Drain, "consul.check_interval": c.Consul.CheckInterval} {
		if d < 0 {
			bad(key, "must be positive, got %s", d)
		}
	}
	if c.Consul.DeregisterAfter < time.Minute {
		bad("consul.deregister_after", "must be at least 1m, got %s", c.Consul.DeregisterAfter)
	}
	switch c.TLS.Mode {
	case TLSOff:
	case TLSConsul:
		if c.Consul.Address == "" {
			bad("tls.mode", "\"consul\" needs consul.address")
		}
	default:
		bad("tls.mode", "must be off or consul, got %q", c.TLS.Mode)
	}
	if _, err := telemetry.NewLogger(io.Discard, c.Log.Level, c.Log.Format); err != nil {
		bad("log", "%w", err)
	}
	return errors.Join(errs...)
}

// everywhere tells a host that means all addresses of the machine.
func everywhere(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// LoadConfig reads a YAML file into a struct, strictly: unknown and doubled keys are errors. Values that the file leaves out stay as they are, so
// defaults are set before. If into has a method Validate() error, that is called.
func LoadConfig(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("configuration %s: more than one YAML document", path)
	}
	if v, ok := into.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return fmt.Errorf("configuration %s: %w", path, err)
		}
	}
	return nil
}
