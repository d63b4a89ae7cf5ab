package firecracker

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/cpu"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
)

// Name is the driver's name.
const Name = "firecracker"

// Config configures the driver.
type Config struct {
	// Binary is Firecracker's path. Default: firecracker of the search path.
	Binary string
	// Jailer is the jailer's path; it must be of Firecracker's version. Empty: the one that is beside Firecracker or in the search path, if
	// it is of that version. NoJailer: none.
	Jailer   string
	NoJailer bool
	// Disks makes paths of disks that are served over NBD. Nil: only disks that are paths can be used.
	Disks Disks
	// Balloon gives guests a balloon device, by which they can return memory.
	Balloon bool
	// Mask are features that guests are not to have though they could.
	Mask []string
	// Timeout bounds each answer of Firecracker. Default 20 s: it answers in milliseconds, but on a host that is overrun it takes long.
	Timeout time.Duration
	// SaveTime bounds the making of a snapshot. Default 5 min: all dirty memory is written to a file.
	SaveTime time.Duration
	// HangTime is after how long without an answer the VMM is given up and ended. Default 60 s.
	HangTime time.Duration
	// Trace is told of every request and its answer. It must not wait. Nil: nobody is.
	Trace func(api.Exchange)
	Log   *slog.Logger
}

// Driver starts VMs with Firecracker. It implements vmm.Driver.
type Driver struct {
	conf    Config
	version version
	caps    vmm.Capabilities
	cpus    processors

	mu  sync.Mutex // guards vms
	vms map[*VM]struct{}
}

var _ vmm.Driver = (*Driver)(nil)

// New looks at the Firecracker that there is. The driver is to be closed. Whether guests run is another question; see Probe.
func New(conf Config) (*Driver, error) {
	if err := conf.fill(); err != nil {
		return nil, err
	}
	v, err := askVersion(conf.Binary)
	if err != nil {
		return nil, err
	}
	if conf.Jailer, err = conf.jailer(v); err != nil {
		return nil, err
	}
	d := &Driver{conf: conf, version: v, vms: map[*VM]struct{}{}}
	if d.cpus, err = newProcessors(v, conf.Mask); err != nil {
		return nil, fmt.Errorf("the processor's features: %w", err)
	}
	d.caps = vmm.Capabilities{
		Driver: Name, Version: v.text, Accel: vmm.KVM, Machine: d.cpus.own(), Machines: d.cpus.machines(), CPUFeatures: d.cpus.has, LazyMemory: true, MaxVCPUs: 32,
	}
	return d, nil
}

func (c *Config) fill() (err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for field, standard := range map[*time.Duration]time.Duration{&c.Timeout: 20 * time.Second, &c.SaveTime: 5 * time.Minute, &c.HangTime: time.Minute} {
		if *field == 0 {
			*field = standard
		}
	}
	if err := cpu.Check(c.Mask); err != nil {
		return fmt.Errorf("mask: %w", err)
	}
	if c.Binary == "" {
		if c.Binary, err = exec.LookPath("firecracker"); err != nil {
			return fmt.Errorf("Firecracker is not installed: %w", err)
		}
	}
	if c.Binary, err = filepath.Abs(c.Binary); err != nil {
		return err
	}
	if err := resolve(&c.Binary, &c.Jailer); err != nil {
		return fmt.Errorf("Firecracker: %w", err)
	}
	return nil
}

// jailer is the jailer to use, empty for none.
func (c *Config) jailer(v version) (string, error) {
	path := c.Jailer
	if path == "" {
		path = findJailer(c.Binary)
	}
	if c.NoJailer || path == "" {
		return "", nil
	}
	out, err := run(path, "--version")
	if err == nil && !strings.HasPrefix(out, "Jailer v"+v.text+"\n") {
		first, _, _ := strings.Cut(out, "\n")
		err = fmt.Errorf("%s --version says %q, want Jailer v%s", path, first, v.text)
	}
	if err != nil && c.Jailer == "" {
		c.Log.Warn("the jailer is not used", "error", err)
		return "", nil
	}
	return path, err
}

// Jailer is the jailer that is used, empty for none.
func (d *Driver) Jailer() string { return d.conf.Jailer }

// findJailer looks for the jailer beside a Firecracker, and in the search path. Empty: there is none.
func findJailer(binary string) string {
	// Releases name both by version: firecracker-v1.16.1-x86_64, jailer-v1.16.1-x86_64.
	beside := filepath.Join(filepath.Dir(binary), strings.Replace(filepath.Base(binary), "firecracker", "jailer", 1))
	if st, err := os.Stat(beside); err == nil && st.Mode()&0o111 != 0 && filepath.Base(beside) != filepath.Base(binary) {
		return beside
	}
	if path, err := exec.LookPath("jailer"); err == nil {
		return path
	}
	return ""
}

// hostProcessor is vendor, family, model and stepping of the host's processor.
func hostProcessor() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	var parts []string
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "cpu family", "model", "stepping":
			parts = append(parts, strings.TrimSpace(value))
		case "":
			return strings.Join(parts, "-") // the first processor's is enough
		}
	}
	return strings.Join(parts, "-")
}

// Capabilities implements vmm.Driver.
func (d *Driver) Capabilities() vmm.Capabilities { return d.caps }

// CPU implements vmm.Driver.
func (d *Driver) CPU(baseline []string) vmm.CPU { return d.cpus.boot(baseline) }

// Close lets go of all VMs, which live on: a later agent can reopen them. No VM may be used afterwards.
func (d *Driver) Close() error {
	d.mu.Lock()
	list := make([]*VM, 0, len(d.vms))
	for v := range d.vms {
		list = append(list, v)
	}
	d.mu.Unlock()
	for _, v := range list {
		v.detach()
	}
	return nil
}

func (d *Driver) check(cfg *vmm.Config, restore bool) error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf(field+": "+format, args...))
	}
	if cfg.VCPUs < 1 || cfg.VCPUs > d.caps.MaxVCPUs {
		bad("VCPUs", "must be 1 to %d, got %d", d.caps.MaxVCPUs, cfg.VCPUs)
	}
	if cfg.MemoryBytes < 16<<20 || cfg.MemoryBytes%(1<<20) != 0 {
		bad("MemoryBytes", "must be a multiple of 1 MiB and at least 16 MiB, got %d", cfg.MemoryBytes)
	}
	if cfg.DiskSocket != "" && cfg.DiskPath != "" {
		bad("DiskSocket, DiskPath", "only one of them can be the disk")
	}
	if cfg.DiskSocket != "" && d.conf.Disks == nil {
		bad("DiskSocket", "this driver was made without a way to attach NBD, %w", vmm.ErrUnsupported)
	}
	if (cfg.TapName == "") != (cfg.MAC == "") {
		bad("TapName, MAC", "go together, got %q and %q", cfg.TapName, cfg.MAC)
	}
	if restore && cfg.PagerSocket == "" {
		bad("PagerSocket", "must be given: states are restored with a pager, %w without", vmm.ErrUnsupported)
	}
	// A boot needs no pager, but one that is named and not there is a mistake that would show much later.
	if st, err := os.Stat(cfg.PagerSocket); cfg.PagerSocket != "" && (err != nil || st.Mode()&os.ModeSocket == 0) {
		bad("PagerSocket", "%s is no socket (%v)", cfg.PagerSocket, err)
	}
	for field, path := range map[string]string{"RunDir": cfg.RunDir, "ConsolePath": cfg.ConsolePath} {
		if !filepath.IsAbs(path) {
			bad(field, "must be an absolute path, got %q", path)
		}
	}
	return errors.Join(errs...)
}

// resolve follows symbolic links, which lead nowhere in the VMM's room.
func resolve(paths ...*string) (err error) {
	for _, p := range paths {
		if *p != "" {
			if *p, err = filepath.EvalSymlinks(*p); err != nil {
				return err
			}
		}
	}
	return nil
}
