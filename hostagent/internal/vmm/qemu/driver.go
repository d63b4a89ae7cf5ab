package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/coveyhq/covey/guest/tsc"

	"github.com/coveyhq/covey/hostagent/internal/cpu"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/launch"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
)

// Name is the driver's name.
const Name = "qemu"

// Config configures the driver.
type Config struct {
	// Binary is QEMU's path. Default: qemu-system-x86_64 of the search path.
	Binary string
	// Preload is the object that takes memory from the pager (see package preload). Empty: VMs have plain memory, and cannot
	// be saved or restored.
	Preload string
	// Accel is vmm.KVM or vmm.TCG (the default).
	Accel vmm.Accel
	// CPU is a processor model of QEMU. Default: Nehalem for TCG, "host" for KVM.
	CPU string
	// Mask are features that guests are not to have though they could.
	Mask []string
	// Timeout bounds each answer of QEMU. Default 20 s: QEMU answers in milliseconds, but on a host that is overrun it takes long.
	Timeout time.Duration
	Log     *slog.Logger
}

// Driver starts VMs with QEMU. It implements vmm.Driver.
type Driver struct {
	conf Config
	caps vmm.Capabilities
	cpus processors
	// userfaultfd is /dev/userfaultfd, which VMMs inherit; nil without Preload.
	userfaultfd *os.File
	fleet       tether.Fleet
}

var _ vmm.Driver = (*Driver)(nil)

// New looks at the QEMU that there is. The driver is to be closed.
func New(conf Config) (*Driver, error) {
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	if conf.Timeout == 0 {
		conf.Timeout = 20 * time.Second
	}
	if err := conf.fill(); err != nil {
		return nil, err
	}
	version, err := version(conf.Binary)
	if err != nil {
		return nil, err
	}
	d := &Driver{conf: conf}
	if d.cpus, err = askProcessors(conf, series(version)); err != nil {
		return nil, err
	}
	if conf.Preload != "" {
		if d.userfaultfd, err = os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0); err != nil {
			return nil, fmt.Errorf("the pager needs userfaultfd: %w", err)
		}
	}
	if conf.Accel == vmm.TCG {
		tsc.KHz() // not within the first boot
	}
	d.caps = vmm.Capabilities{
		Driver: Name, Version: version, Accel: conf.Accel, Machine: d.cpus.boot(nil).Machine, Machines: d.cpus.machines(), CPUFeatures: d.cpus.has,
		LazyMemory: conf.Preload != "", PrivateMapping: conf.Preload != "", MaxVCPUs: 32,
	}
	return d, nil
}

func (c *Config) fill() (err error) {
	if c.Binary == "" {
		if c.Binary, err = exec.LookPath("qemu-system-x86_64"); err != nil {
			return fmt.Errorf("QEMU is not installed (Debian package qemu-system-x86): %w", err)
		}
	}
	if c.Binary, err = filepath.EvalSymlinks(c.Binary); err != nil {
		return err
	}
	switch {
	case c.Accel == "":
		c.Accel = vmm.TCG
	case c.Accel != vmm.TCG && c.Accel != vmm.KVM:
		return fmt.Errorf("accelerator: must be %q or %q, got %q", vmm.TCG, vmm.KVM, c.Accel)
	}
	if err := cpu.Check(c.Mask); err != nil {
		return fmt.Errorf("mask: %w", err)
	}
	if c.Preload != "" {
		if c.Preload, err = filepath.Abs(c.Preload); err == nil {
			err = launch.Resolve(&c.Preload)
		}
		if err != nil {
			return fmt.Errorf("the preloaded object: %w", err)
		}
	}
	return nil
}

// findOut bounds each thing that is found out of QEMU as the agent starts: it takes a tenth of a second, but an agent that comes back to a
// host that is overrun must not take that for a QEMU that does not work.
const findOut = time.Minute

var versionLine = regexp.MustCompile(`^QEMU emulator version (\d+\.\d+\.\d+)`)

func version(binary string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), findOut)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "-version").Output()
	if err != nil {
		return "", fmt.Errorf("%s -version: %w", binary, err)
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		first, _, _ := bytes.Cut(out, []byte("\n"))
		return "", fmt.Errorf("%s -version says %q, which is no QEMU", binary, first)
	}
	return string(m[1]), nil
}

// Capabilities implements vmm.Driver.
func (d *Driver) Capabilities() vmm.Capabilities { return d.caps }

// CPU implements vmm.Driver.
func (d *Driver) CPU(baseline []string) vmm.CPU { return d.cpus.boot(baseline) }

// Close lets go of all VMs, which live on: a later agent can reopen them. No VM may be used afterwards.
func (d *Driver) Close() error {
	d.fleet.Close()
	if d.userfaultfd != nil {
		return d.userfaultfd.Close()
	}
	return nil
}

func (d *Driver) check(cfg *vmm.Config) error {
	errs := []error{cfg.Check(d.caps.MaxVCPUs)}
	if cfg.PagerSocket != "" && cfg.Memory == nil {
		errs = append(errs, vmm.BadField("Memory", "must be given with PagerSocket"))
	}
	if cfg.PagerSocket != "" && d.conf.Preload == "" {
		errs = append(errs, vmm.BadField("PagerSocket", "this driver was made without the preloaded object, %w", vmm.ErrUnsupported))
	}
	return errors.Join(errs...)
}
