package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxHosts is the most host agents of one mesh: they are all on this machine.
const maxHosts = 8

// DefaultDir is where `make up` keeps its mesh.
const DefaultDir = "/var/lib/covey/local"

// Options say how to run a mesh.
type Options struct {
	// Dir is the mesh's directory; made if missing, and removed by Down.
	Dir string
	// Hosts is the number of host agents, 1 to 8; default 2.
	Hosts int
	// Listen is the gateway's address; default 127.0.0.1:7070. Port 0 chooses a free one.
	Listen string
	// Slots is the number of network slots of each host; default 64.
	Slots int
	// OvercommitVCPUs is how many virtual CPUs each host offers; default 64: development machines are small.
	VCPUs int
	// MemoryMB is the memory each host offers; default half the machine's, shared by the hosts.
	MemoryMB int
	// Backbone gives each host, and each service that can fail by itself, a network namespace of its own, all joined by a switch: so they can be
	// cut off and slowed. The default is loopback. Listen is not used then: the gateway is reached with Mesh.Dial alone.
	Backbone bool
	// ObjectServer keeps objects in a server that speaks S3, a process of its own, rather than in a directory.
	ObjectServer bool
	// Timing is sandboxd's, for tests that do not wait as long as a fleet does: "lease": "3s".
	Timing map[string]string
	// MutualTLS has the daemons know each other by certificates of Consul's authority, as they should on more machines than one.
	MutualTLS bool
	// Progress shows the steps; nil is silent.
	Progress *Progress
}

// Mesh is a running mesh, as its state file describes it.
type Mesh struct {
	// Dir is its directory.
	Dir string `json:"dir"`
	// URL is the gateway's, for REST, WebSocket and the documentation.
	URL string `json:"url"`
	// Addr is the gateway's address for native gRPC.
	Addr string `json:"addr"`
	// KeyFile holds the API key of the first tenant's administrator.
	KeyFile string `json:"key_file"`
	// ConsulAddr is Consul's HTTP address.
	ConsulAddr string `json:"consul_addr"`
	// DSN is the database's.
	DSN string `json:"dsn"`
	// Bin holds the binaries that it runs.
	Bin string `json:"bin"`
	// Backbone is its network; nil means loopback.
	Backbone *Backbone `json:"backbone,omitempty"`
	// Objects is its S3 server; nil means that objects are files in Dir/objects.
	Objects *Objects `json:"objects,omitempty"`
	// Hosts are the ids of its host agents.
	Hosts []string `json:"hosts"`
	// Processes are its processes, in the order they were started.
	Processes []*Process `json:"processes"`
}

// ErrNoMesh: there is no mesh in the directory.
var ErrNoMesh = errors.New("no mesh is running")

// Up starts a mesh, or completes one that runs only in part, and returns when every service is healthy and a request
// through the gateway is answered. Running it again is safe.
func Up(ctx context.Context, t *Toolchain, o Options) (*Mesh, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	b := &starter{t: t, o: o}
	if m, err := Attach(o.Dir); err == nil {
		b.m = m
	} else if errors.Is(err, ErrNoMesh) {
		b.m = &Mesh{Dir: o.Dir, Bin: t.Bin, KeyFile: filepath.Join(o.Dir, "api-key")}
	} else {
		return nil, err
	}
	for _, s := range b.steps() {
		if err := o.Progress.Run(s.name, func(tell func(string)) (string, error) { return s.do(ctx, tell) }); err != nil {
			return b.m, fmt.Errorf("%w\n(logs are in %s)", err, filepath.Join(o.Dir, "logs"))
		}
	}
	return b.m, nil
}

func (o *Options) complete() error {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	if o.Hosts == 0 {
		o.Hosts = 2
	}
	if o.Hosts < 1 || o.Hosts > maxHosts {
		return fmt.Errorf("hosts: must be 1 to %d, got %d", maxHosts, o.Hosts)
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:7070"
	}
	if o.Slots == 0 {
		o.Slots = 64
	}
	if o.VCPUs == 0 {
		o.VCPUs = 64
	}
	if o.Progress == nil {
		o.Progress = NewProgress(nil)
	}
	if o.MemoryMB == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return err
		}
		o.MemoryMB = int(info.Totalram*uint64(info.Unit)>>20) / 2 / o.Hosts
	}
	return nil
}

// Attach finds the mesh that runs in dir.
func Attach(dir string) (*Mesh, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "mesh.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s", ErrNoMesh, dir)
	}
	if err != nil {
		return nil, err
	}
	m := &Mesh{}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, fmt.Errorf("%s/mesh.json is damaged: %w", dir, err)
	}
	return m, nil
}

// save writes the state file; the mesh can be taken down from then on, whatever happens to this process.
func (m *Mesh) save() error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(m.Dir, "mesh.json.tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(m.Dir, "mesh.json"))
}

// Process finds a process by name; nil if there is none.
func (m *Mesh) Process(name string) *Process {
	i := slices.IndexFunc(m.Processes, func(p *Process) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return m.Processes[i]
}

// APIKey reads the administrator's API key.
func (m *Mesh) APIKey() (string, error) {
	b, err := os.ReadFile(m.KeyFile)
	return strings.TrimSpace(string(b)), err
}

// Kill ends a process at once, as a crash would.
func (m *Mesh) Kill(ctx context.Context, name string) error {
	p := m.Process(name)
	if p == nil {
		return fmt.Errorf("the mesh has no process %q", name)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	return p.wait(ctx)
}

// Restart starts a process again that has ended.
func (m *Mesh) Restart(ctx context.Context, name string) error {
	p := m.Process(name)
	if p == nil {
		return fmt.Errorf("the mesh has no process %q", name)
	}
	if p.Alive() {
		return nil
	}
	if err := p.start(); err != nil {
		return err
	}
	return m.save()
}

// Ready asks the gateway whether the whole mesh can serve.
func (m *Mesh) Ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.URL+"/readyz", nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DialContext: m.Dial, DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s/readyz answers %s", m.URL, res.Status)
	}
	return nil
}

// Down ends every process of the mesh, sandboxes included, removes its directory, and reports what is left behind.
// Taking down what is not up is no error.
func (m *Mesh) Down(ctx context.Context) error {
	var errs []error
	order := slices.Clone(m.Processes)
	slices.Reverse(order)
	for _, p := range order {
		grace := 10 * time.Second
		if strings.HasPrefix(p.Name, "hostagentd") {
			grace = 30 * time.Second
		}
		if err := p.stop(ctx, grace); err != nil {
			errs = append(errs, err)
		}
		if strings.HasPrefix(p.Name, "hostagentd") {
			errs = append(errs, m.reapHost(ctx, p))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if m.Backbone != nil {
		if err := m.Backbone.remove(); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(memoryDir(m.Dir)), os.RemoveAll(m.Dir))
}

// reapHost removes what a host agent left, which is nothing unless it had crashed: VMs, namespaces, cgroups, memory.
func (m *Mesh) reapHost(ctx context.Context, p *Process) error {
	args := append([]string{"reap"}, p.Args...)
	return inside(p.NetNS, func() error { return run(ctx, func(string) {}, "/", os.Environ(), p.Path, args...) })
}
