// Package choice chooses the VMM driver of a host.
//
// Vocabulary
//
//   - candidate: a driver with what it executes guests by, like "QEMU with KVM".
//   - finding: why a candidate was chosen, or why not. `hostagentd doctor` prints them.
//
// Candidates are tried in order: Firecracker, QEMU with KVM, QEMU with TCG. The first that boots the guest's own kernel is taken; TCG
// works wherever QEMU is installed, and so is not tried. A configuration that asks for one driver or accelerator leaves out the others, and
// then it is an error that none works: a host that was meant to be fast must not be slow without anybody noticing.
//
// Rejected: to prefer QEMU where both boot (it starts slower and has more devices to attack).
package choice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/coveyhq/covey/hostagent/internal/probe"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/attach"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu"
)

// Auto leaves the choice to this package.
const Auto = "auto"

// Config says what may be chosen, and what it is tried with.
type Config struct {
	// Driver is "auto", "firecracker" or "qemu"; Accel is "auto", "kvm" or "tcg". Empty is "auto".
	Driver, Accel string
	// Vmlinux is the guest's kernel for Firecracker, BzImage for QEMU; KernelID is the name of their content.
	Vmlinux, BzImage, KernelID string
	// Dir is where verdicts are kept.
	Dir string
	// UID and GID that VMMs are tried as.
	UID, GID int
	// Fresh asks for new trials.
	Fresh bool
	// Firecracker and QEMU configure the drivers; QEMU's accelerator is chosen, and without Firecracker's Disks what the kernel has for them.
	Firecracker firecracker.Config
	QEMU        qemu.Config
	Log         *slog.Logger
}

// Finding is what became of one candidate.
type Finding struct {
	Candidate string
	Chosen    bool
	Reason    string
}

// candidate is a driver that may be chosen.
type candidate struct {
	name, driver, dir, kernel string
	accel                     vmm.Accel
	make                      func() (vmm.Driver, error)
}

// Driver makes the best driver that works here, and says why it is this one. The caller closes it. The findings are there on an error too.
func Driver(ctx context.Context, conf Config) (vmm.Driver, []Finding, error) {
	if err := conf.check(); err != nil {
		return nil, nil, err
	}
	var disks string
	if conf.Firecracker.Disks == nil {
		conf.Firecracker.Disks, disks = attach.New()
	}
	var findings []Finding
	for _, c := range conf.candidates() {
		if reason := conf.excluded(c); reason != "" {
			findings = append(findings, Finding{Candidate: c.name, Reason: reason})
			continue
		}
		reason, works, err := conf.try(ctx, c)
		if err != nil {
			return nil, findings, fmt.Errorf("%s: %w", c.name, err)
		}
		var d vmm.Driver
		if works {
			if d, err = c.make(); err != nil {
				works, reason = false, err.Error()
			}
		}
		if works && disks != "" && c.driver == firecracker.Name {
			reason += "; " + disks
		}
		findings = append(findings, Finding{c.name, works, reason})
		if works {
			return d, findings, nil
		}
	}
	return nil, findings, fmt.Errorf("no VMM driver works here: %s", Explain(findings))
}

func (c *Config) check() error {
	for _, f := range []struct {
		name  string
		value *string
		legal []string
	}{{"driver", &c.Driver, []string{Auto, firecracker.Name, qemu.Name}}, {"accel", &c.Accel, []string{Auto, string(vmm.KVM), string(vmm.TCG)}}} {
		if *f.value == "" {
			*f.value = Auto
		}
		legal := false
		for _, l := range f.legal {
			legal = legal || *f.value == l
		}
		if !legal {
			return fmt.Errorf("%s: must be one of %s, got %q", f.name, strings.Join(f.legal, ", "), *f.value)
		}
	}
	if c.Driver == firecracker.Name && c.Accel == string(vmm.TCG) {
		return errors.New("accel: Firecracker runs with kvm only, got \"tcg\"")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (c *Config) candidates() []candidate {
	qemuWith := func(accel vmm.Accel) func() (vmm.Driver, error) {
		return func() (vmm.Driver, error) {
			conf := c.QEMU
			conf.Accel = accel
			return asDriver(qemu.New(conf))
		}
	}
	return []candidate{
		{"Firecracker", firecracker.Name, "firecracker", c.Vmlinux, vmm.KVM, func() (vmm.Driver, error) { return asDriver(firecracker.New(c.Firecracker)) }},
		{"QEMU with KVM", qemu.Name, "qemu", c.BzImage, vmm.KVM, qemuWith(vmm.KVM)},
		{"QEMU with TCG", qemu.Name, "", c.BzImage, vmm.TCG, qemuWith(vmm.TCG)},
	}
}

// asDriver keeps a nil pointer from becoming a driver.
func asDriver[D vmm.Driver](d D, err error) (vmm.Driver, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

// excluded says why the configuration leaves a candidate out, "" if it does not.
func (c *Config) excluded(x candidate) string {
	switch {
	case c.Driver != Auto && c.Driver != x.driver:
		return "the configuration asks for the driver " + c.Driver
	case c.Accel != Auto && c.Accel != string(x.accel):
		return "the configuration asks for the accelerator " + c.Accel
	}
	return ""
}

// try tells whether a candidate boots the guest's kernel. An error means that it cannot be told.
func (c *Config) try(ctx context.Context, x candidate) (reason string, works bool, err error) {
	if x.accel == vmm.TCG {
		return "works without KVM, more slowly", true, nil
	}
	if _, err := os.Stat(x.kernel); err != nil {
		return fmt.Sprintf("there is no kernel to try it with: %v", err), false, nil
	}
	d, err := x.make()
	if err != nil {
		return err.Error(), false, nil
	}
	id := d.Capabilities().Driver + "-" + d.Capabilities().Version
	if err := closeDriver(d); err != nil {
		return "", false, err
	}
	v, err := probe.KVM(ctx, probe.KVMConfig{
		Driver: x.make, DriverID: id, KernelID: c.KernelID, Kernel: x.kernel, Dir: filepath.Join(c.Dir, x.dir), UID: c.UID, GID: c.GID,
		Fresh: c.Fresh, Log: c.Log,
	})
	return v.Reason, v.Works, err
}

func closeDriver(d vmm.Driver) error {
	if c, ok := d.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}

// Explain puts findings in one line.
func Explain(findings []Finding) string {
	var parts []string
	for _, f := range findings {
		verdict := "no: "
		if f.Chosen {
			verdict = "chosen: "
		}
		parts = append(parts, f.Candidate+" "+verdict+f.Reason)
	}
	return strings.Join(parts, "; ")
}
