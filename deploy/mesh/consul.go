package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	consul "github.com/hashicorp/consul/api"
)

// writeConsulConfig writes the configuration of the mesh's one Consul server: everything on one address, ports chosen by
// the caller, Consul's own certificate authority on (the daemons' identities come from it), telemetry and update checks off.
func writeConsulConfig(path, dataDir, addr string, http, grpc, server, serf, dns int) error {
	conf := map[string]any{
		"server": true, "bootstrap_expect": 1, "data_dir": dataDir, "node_name": "covey-local", "datacenter": "local",
		"bind_addr": addr, "client_addr": addr, "advertise_addr": addr,
		"ports": map[string]int{"http": http, "grpc": grpc, "grpc_tls": -1, "https": -1, "dns": dns, "server": server,
			"serf_lan": serf, "serf_wan": -1},
		"connect":              map[string]any{"enabled": true},
		"disable_update_check": true, "log_level": "warn", "enable_script_checks": false,
		"performance":   map[string]any{"raft_multiplier": 1},
		"raft_logstore": map[string]any{"backend": "boltdb"},
	}
	b, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// Consul is a client of the mesh's Consul. It keeps no connections: Consul bounds them.
func (m *Mesh) Consul() (*consul.Client, error) {
	c := consul.DefaultNonPooledConfig()
	c.Address, c.Transport.DialContext = m.ConsulAddr, m.Dial
	return consul.NewClient(c)
}

// waitConsul waits until Consul has a leader and its own node is known.
func (m *Mesh) waitConsul(ctx context.Context, p *Process) error {
	c, err := m.Consul()
	if err != nil {
		return err
	}
	return until(ctx, "Consul to elect itself", func(ctx context.Context) error {
		if !p.Alive() {
			return &finalError{fmt.Errorf("consul ended; its log %s ends with:\n%s", p.Log, logTail(p.Log))}
		}
		nodes, _, err := c.Catalog().Nodes((&consul.QueryOptions{}).WithContext(ctx))
		if err == nil && len(nodes) == 0 {
			err = fmt.Errorf("no leader yet")
		}
		return err
	})
}

// waitPassing waits until n instances of a service pass their health checks.
func (m *Mesh) waitPassing(ctx context.Context, service string, n int, procs []*Process) error {
	c, err := m.Consul()
	if err != nil {
		return err
	}
	return until(ctx, service+" to be healthy", func(ctx context.Context) error {
		for _, p := range procs {
			if !p.Alive() {
				return &finalError{fmt.Errorf("%s ended; its log %s ends with:\n%s", p.Name, p.Log, logTail(p.Log))}
			}
		}
		got, _, err := c.Health().Service(service, "", true, (&consul.QueryOptions{}).WithContext(ctx))
		if err == nil && len(got) < n {
			err = fmt.Errorf("%d of %d are healthy", len(got), n)
		}
		return err
	})
}
