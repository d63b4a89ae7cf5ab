package mesh

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// starter starts what is not yet running of one mesh.
type starter struct {
	t *Toolchain
	o Options
	m *Mesh
}

type startStep struct {
	name string
	do   func(context.Context, func(string)) (string, error)
}

func (s *starter) steps() []startStep {
	steps := []startStep{{"PostgreSQL", s.postgres}, {"Consul", s.consul}}
	if s.o.Backbone {
		steps = append([]startStep{{"backbone", s.backbone}}, steps...)
	}
	if s.o.ObjectServer {
		steps = append(steps, startStep{"object store", s.objects})
	}
	return append(steps, []startStep{
		{"services", s.services},
		{"host agents", s.hosts},
		{"gateway", s.gateway},
	}...)
}

// hostIDs are the ids of the hosts: host-a, host-b.
func (s *starter) hostIDs() (ids []string) {
	for i := range s.o.Hosts {
		ids = append(ids, "host-"+string(rune('a'+i)))
	}
	return ids
}

// backbone makes the mesh's network. It is in the state file before anything of it is made.
func (s *starter) backbone(context.Context, func(string)) (string, error) {
	if err := os.MkdirAll(s.o.Dir, 0o755); err != nil {
		return "", err
	}
	if s.m.Backbone == nil {
		s.m.Backbone = &Backbone{Prefix: backbonePrefix(s.o.Dir)}
		if err := s.m.save(); err != nil {
			return "", err
		}
	}
	sites := append([]string{ControlSite, RegistrySite, ObjectsSite, ConsulSite, DatabaseSite}, s.hostIDs()...)
	if err := s.m.Backbone.layOut(sites); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d network namespaces", len(sites)+1), s.m.save()
}

// host is the address that what is at a site listens on.
func (s *starter) host(site string) string {
	if s.m.Backbone == nil {
		return "127.0.0.1"
	}
	return s.m.Backbone.Sites[site].String()
}

// at puts a process at a site.
func (s *starter) at(site string, p *Process) *Process {
	if s.m.Backbone != nil {
		p.NetNS = s.m.Backbone.path(site)
	}
	return p
}

// launch starts a process unless it runs already.
func (s *starter) launch(p *Process) error {
	p.Log = s.path("logs", p.Name+".log")
	if old := s.m.Process(p.Name); old != nil {
		if old.Alive() {
			*p = *old
			return nil
		}
		if err := old.start(); err != nil {
			return err
		}
		*p = *old
		return s.m.save()
	}
	if err := p.start(); err != nil {
		return err
	}
	s.m.Processes = append(s.m.Processes, p)
	return s.m.save()
}

func (s *starter) path(parts ...string) string {
	return filepath.Join(append([]string{s.o.Dir}, parts...)...)
}

func (s *starter) postgres(ctx context.Context, tell func(string)) (string, error) {
	// Its own users must be able to enter: PostgreSQL's and the VMMs'.
	if err := os.MkdirAll(s.o.Dir, 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(s.o.Dir, 0o755); err != nil {
		return "", err
	}
	db, err := newDatabase(s.t.PostgresBin, s.path("postgres"))
	if err != nil {
		return "", err
	}
	if s.m.Backbone != nil {
		db.addr = s.m.Backbone.Sites[DatabaseSite]
	}
	if err := db.init(ctx, tell); err != nil {
		return "", err
	}
	s.m.DSN = db.DSN()
	p := s.at(DatabaseSite, db.process(""))
	if err := s.launch(p); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	return "pid " + strconv.Itoa(p.PID), db.create(ctx)
}

func (s *starter) consul(ctx context.Context, _ func(string)) (string, error) {
	conf := s.path("consul", "consul.json")
	if s.m.ConsulAddr == "" {
		var ports [5]int
		for i := range ports {
			var err error
			if ports[i], err = freePort(); err != nil {
				return "", err
			}
		}
		if err := writeConsulConfig(conf, s.path("consul", "data"), s.host(ConsulSite), ports[0], ports[1], ports[2], ports[3], ports[4]); err != nil {
			return "", err
		}
		s.m.ConsulAddr = net.JoinHostPort(s.host(ConsulSite), strconv.Itoa(ports[0]))
	}
	p := s.at(ConsulSite, &Process{Name: "consul", Path: s.t.Consul, Args: []string{"agent", "-config-file", conf}})
	if err := s.launch(p); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	return "http://" + s.m.ConsulAddr, s.m.waitConsul(ctx, p)
}

// chassis is the part of the configuration that all daemons have.
func (s *starter) chassis(service, name, listen string) map[string]any {
	mode := map[bool]string{true: "consul", false: "off"}[s.o.MutualTLS]
	return map[string]any{
		"tls":            map[string]any{"mode": mode},
		"service":        service,
		"listen":         listen,
		"consul":         map[string]any{"address": s.m.ConsulAddr},
		"log":            map[string]any{"level": "info", "format": "json"},
		"telemetry":      map[string]any{"trace_file": s.path("traces", name+".jsonl")},
		"metrics_listen": "127.0.0.1:0",
	}
}

// daemon writes a daemon's configuration and starts it at a site.
func (s *starter) daemon(site, name, binary string, conf map[string]any) (*Process, error) {
	path := s.path("config", name+".yaml")
	if err := writeYAML(path, conf); err != nil {
		return nil, err
	}
	p := s.at(site, &Process{Name: name, Path: filepath.Join(s.t.Bin, binary), Args: []string{"--config", path}})
	return p, s.launch(p)
}

func (s *starter) services(ctx context.Context, _ func(string)) (string, error) {
	sched, err := s.daemon(ControlSite, "schedulerd", "schedulerd", map[string]any{
		"chassis": s.chassis("covey-scheduler", "schedulerd", s.host(ControlSite)+":0"),
	})
	if err != nil {
		return "", err
	}
	snap, err := s.daemon(RegistrySite, "snapshotd", "snapshotd", map[string]any{
		"chassis":  s.chassis("covey-snapshot", "snapshotd", s.host(RegistrySite)+":0"),
		"database": map[string]any{"dsn": s.m.DSN},
		"store":    s.store(),
	})
	if err != nil {
		return "", err
	}
	conf := map[string]any{
		"chassis":                s.chassis("covey-sandbox", "sandboxd", s.host(ControlSite)+":0"),
		"database":               map[string]any{"dsn": s.m.DSN},
		"bootstrap_api_key_file": s.m.KeyFile,
	}
	if s.o.Timing != nil {
		conf["timing"] = s.o.Timing
	}
	sand, err := s.daemon(ControlSite, "sandboxd", "sandboxd", conf)
	if err != nil {
		return "", err
	}
	procs := []*Process{sched, snap, sand}
	for _, service := range []string{"covey-scheduler", "covey-snapshot", "covey-sandbox"} {
		if err := s.healthy(ctx, service, 1, procs); err != nil {
			return "", err
		}
	}
	return "scheduler, snapshot registry, sandbox service", nil
}

func (s *starter) healthy(ctx context.Context, service string, n int, procs []*Process) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	return s.m.waitPassing(ctx, service, n, procs)
}

func (s *starter) hosts(ctx context.Context, _ func(string)) (string, error) {
	s.m.Hosts = nil
	var procs []*Process
	for _, id := range s.hostIDs() {
		p, err := s.daemon(id, "hostagentd-"+id, "hostagentd", s.hostConfig(id))
		if err != nil {
			return "", err
		}
		s.m.Hosts = append(s.m.Hosts, id)
		procs = append(procs, p)
	}
	if err := s.m.save(); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d on this machine", s.o.Hosts), s.healthy(ctx, "covey-host", s.o.Hosts, procs)
}

func (s *starter) gateway(ctx context.Context, _ func(string)) (string, error) {
	if s.m.Addr == "" {
		host, port, err := net.SplitHostPort(s.o.Listen)
		if err != nil {
			return "", fmt.Errorf("listen: %w", err)
		}
		if s.m.Backbone != nil {
			host = s.host(ControlSite)
		}
		if port == "0" {
			n, err := freePort()
			if err != nil {
				return "", err
			}
			port = strconv.Itoa(n)
		}
		s.m.Addr = net.JoinHostPort(host, port)
		s.m.URL = "http://" + s.m.Addr
	}
	p, err := s.daemon(ControlSite, "gatewayd", "gatewayd", map[string]any{
		"chassis": s.chassis("covey-gateway", "gatewayd", s.m.Addr),
	})
	if err != nil {
		return "", err
	}
	if err := s.healthy(ctx, "covey-gateway", 1, []*Process{p}); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return s.m.URL, until(ctx, "the gateway to be ready", s.m.Ready)
}

func writeYAML(path string, v any) error {
	b, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
