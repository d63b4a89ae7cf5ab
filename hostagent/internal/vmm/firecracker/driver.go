package firecracker

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/cpu"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
	"github.com/coveyhq/covey/hostagent/internal/vmm/launch"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
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
	fleet   tether.Fleet
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
	d := &Driver{conf: conf, version: v}
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
			return fmt.Errorf("no Firecracker is installed: %w", err)
		}
	}
	if c.Binary, err = filepath.Abs(c.Binary); err != nil {
		return err
	}
	if err := launch.Resolve(&c.Binary, &c.Jailer); err != nil {
		return fmt.Errorf("path of Firecracker or its jailer: %w", err)
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

// Capabilities implements vmm.Driver.
func (d *Driver) Capabilities() vmm.Capabilities { return d.caps }

// CPU implements vmm.Driver.
func (d *Driver) CPU(baseline []string) vmm.CPU { return d.cpus.boot(baseline) }

// Close lets go of all VMs, which live on: a later agent can reopen them. No VM may be used afterwards.
func (d *Driver) Close() error {
	d.fleet.Close()
	return nil
}

func (d *Driver) check(cfg *vmm.Config, restore bool) error {
	errs := []error{cfg.Check(d.caps.MaxVCPUs)}
	if cfg.DiskSocket != "" && d.conf.Disks == nil {
		errs = append(errs, vmm.BadField("DiskSocket", "this driver was made without a way to attach NBD, %w", vmm.ErrUnsupported))
	}
	if restore && cfg.PagerSocket == "" {
		errs = append(errs, vmm.BadField("PagerSocket", "must be given: states are restored with a pager, %w without", vmm.ErrUnsupported))
	}
	// A boot needs no pager, but one that is named and not there is a mistake that would show much later.
	if st, err := os.Stat(cfg.PagerSocket); cfg.PagerSocket != "" && (err != nil || st.Mode()&os.ModeSocket == 0) {
		errs = append(errs, vmm.BadField("PagerSocket", "%s is no socket (%v)", cfg.PagerSocket, err))
	}
	return errors.Join(errs...)
}
