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
	"strings"
	"sync"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
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
	// Timeout bounds each answer of QEMU. Default 20 s: QEMU answers in milliseconds, but on a host that is overrun it takes long.
	Timeout time.Duration
	Log     *slog.Logger
}

// Driver starts VMs with QEMU. It implements vmm.Driver.
type Driver struct {
	conf Config
	caps vmm.Capabilities
	// userfaultfd is /dev/userfaultfd, which VMMs inherit; nil without Preload.
	userfaultfd *os.File

	mu  sync.Mutex // guards vms
	vms map[*VM]struct{}
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
	d := &Driver{conf: conf, vms: map[*VM]struct{}{}}
	if conf.Preload != "" {
		if d.userfaultfd, err = os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0); err != nil {
			return nil, fmt.Errorf("the pager needs userfaultfd: %w", err)
		}
	}
	if conf.Accel == vmm.TCG {
		tscKHz() // not within the first boot
	}
	d.caps = vmm.Capabilities{
		Driver: Name, Version: version, Accel: conf.Accel, Machine: machineName(version, conf),
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
	if c.Preload != "" {
		if c.Preload, err = filepath.Abs(c.Preload); err == nil {
			err = resolve(&c.Preload)
		}
		if err != nil {
			return fmt.Errorf("the preloaded object: %w", err)
		}
	}
	return nil
}

var versionLine = regexp.MustCompile(`^QEMU emulator version (\d+\.\d+\.\d+)`)

func version(binary string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
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

// layout is raised whenever the command line changes in a way that keeps older states from loading.
const layout = 2

// machineName names what a state file depends on. The model microvm has no versions of its own, so QEMU's stands for them; bug fixes
// (the third number) keep the state's format.
func machineName(version string, conf Config) string {
	series := version[:strings.LastIndexByte(version, '.')]
	return fmt.Sprintf("microvm-%s.%d-%s-%s", series, layout, conf.Accel, processor(conf))
}

// processor names the processor that a guest sees.
func processor(conf Config) string {
	model := conf.model()
	name, _, _ := strings.Cut(model, ",")
	if conf.Accel == vmm.KVM && (name == "host" || name == "max") {
		return model + "(" + hostProcessor() + ")"
	}
	return model
}

// emulated is the processor under TCG: x86-64-v2, which what Debian and Python's wheels are built for needs, with instructions for random numbers.
// A guest takes an eighth less of the host's time from its restore to its first answer than with "max": what it does with newer
// instructions QEMU emulates in more steps than what it does without.
const emulated = "Nehalem-v1,+rdrand"

// model is what -cpu is given.
func (c *Config) model() string {
	switch {
	case c.CPU != "":
		return c.CPU
	case c.Accel == vmm.KVM:
		return "host"
	}
	return emulated
}

// hostProcessor is vendor, family, model and stepping of the host's processor.
func hostProcessor() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	var parts []string
	for _, line := range strings.Split(string(b), "\n") {
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
	if d.userfaultfd != nil {
		return d.userfaultfd.Close()
	}
	return nil
}

func (d *Driver) check(cfg *vmm.Config) error {
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
	if (cfg.TapName == "") != (cfg.MAC == "") {
		bad("TapName, MAC", "go together, got %q and %q", cfg.TapName, cfg.MAC)
	}
	if cfg.PagerSocket != "" && cfg.Memory == nil {
		bad("Memory", "must be given with PagerSocket")
	}
	if cfg.PagerSocket != "" && d.conf.Preload == "" {
		bad("PagerSocket", "this driver was made without the preloaded object, %w", vmm.ErrUnsupported)
	}
	for field, path := range map[string]string{"RunDir": cfg.RunDir, "ConsolePath": cfg.ConsolePath} {
		if !filepath.IsAbs(path) {
			bad(field, "must be an absolute path, got %q", path)
		}
	}
	return errors.Join(errs...)
}
