package firecracker

import (
	"fmt"
	"os"
	"strings"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/statefile"
)

// formerState does not say which features the processor had: all of the host's. Every state that is written says it.
const formerState = 1

// format is that of this driver's state files.
var format = statefile.Format{Magic: "COVEYFS", Oldest: formerState, Version: 2}

// stateMeta says what a VM must be like to load a state, and which Firecracker.
type stateMeta struct {
	// CPU is the guest's processor as the host agent knows it; the state has all of it.
	CPU     vmm.CPU `json:"cpu,omitzero"`
	Version string  `json:"version"`
	// Major and Minor are the state format's.
	Major int `json:"format_major"`
	Minor int `json:"format_minor"`
	// Layout is layoutVersion.
	Layout      int    `json:"layout"`
	Processor   string `json:"processor"`
	VCPUs       int    `json:"vcpus"`
	MemoryBytes int64  `json:"memory_bytes"`
	Disk        bool   `json:"disk"`
	// TAP is the name of the device, which old versions must find again; empty without network.
	TAP string `json:"tap"`
}

func (d *Driver) meta(cfg *vmm.Config, cpu vmm.CPU) stateMeta {
	return stateMeta{
		CPU: cpu, Version: d.version.text, Major: d.version.major, Minor: d.version.minor, Layout: layoutVersion, Processor: d.cpus.host,
		VCPUs: cfg.VCPUs, MemoryBytes: cfg.MemoryBytes, Disk: cfg.DiskSocket != "" || cfg.DiskPath != "", TAP: cfg.TapName,
	}
}

// fits says what keeps a VM like mine from loading a state of m, and what could.
func (m stateMeta) fits(v version, mine stateMeta) error {
	if !v.loads(m.Major, m.Minor) {
		return fmt.Errorf("%w: it is of Firecracker %s (state format %d.%d), and Firecracker %s loads format %d up to %d.%d only; %s",
			vmm.ErrIncompatible, m.Version, m.Major, m.Minor, v.text, v.major, v.major, v.minor, loadersOf(m.Major, m.Minor))
	}
	if m.Processor != mine.Processor && !(m.baselined() && vendorOf(m.Processor) == vendorOf(mine.Processor)) {
		return fmt.Errorf("%w: it was saved on the processor %s, this host has %s; a host with the same vendor, family, model and stepping can load it",
			vmm.ErrIncompatible, m.Processor, mine.Processor)
	}
	if !v.release.overrides && m.TAP != mine.TAP {
		return fmt.Errorf("%w: its TAP device is %q, the VM's is %q; Firecracker %s cannot rename it, 1.12 or later can",
			vmm.ErrIncompatible, m.TAP, mine.TAP, v.text)
	}
	for _, f := range []struct {
		what       string
		have, want any
	}{
		{"layout", m.Layout, mine.Layout}, {"number of vCPUs", m.VCPUs, mine.VCPUs}, {"memory in bytes", m.MemoryBytes, mine.MemoryBytes},
		{"disk", m.Disk, mine.Disk}, {"network card", m.TAP != "", mine.TAP != ""},
	} {
		if f.have != f.want {
			return fmt.Errorf("%w: its %s is %v, the VM's is %v", vmm.ErrIncompatible, f.what, f.have, f.want)
		}
	}
	return nil
}

// baselined tells whether the guest sees what a baseline has left of the processor, and not the processor.
func (m stateMeta) baselined() bool {
	return m.CPU.Machine != "" && strings.HasSuffix(m.CPU.Machine, "-"+vendorOf(m.Processor))
}

func vendorOf(processor string) string {
	vendor, _, _ := strings.Cut(processor, "-")
	return vendor
}

// writeState wraps Firecracker's state into a state file.
func (d *Driver) writeState(path string, cfg *vmm.Config, cpu vmm.CPU, from *os.File) error {
	body, err := statefile.Body(from)
	if err != nil {
		return err
	}
	return format.Write(path, d.meta(cfg, cpu), body)
}

// openState verifies a state file and returns Firecracker's state, with the processor that the VM has.
func (d *Driver) openState(path string, cfg *vmm.Config) ([]byte, vmm.CPU, error) {
	var meta stateMeta
	body, err := format.Read(path, &meta)
	if err == nil {
		if meta.CPU.Machine == "" {
			meta.CPU = d.cpus.former()
		}
		err = meta.fits(d.version, d.meta(cfg, meta.CPU))
	}
	if err == nil {
		err = d.cpus.fits(meta.CPU)
	}
	if err != nil {
		return nil, vmm.CPU{}, fmt.Errorf("state %s: %w", path, err)
	}
	return body, meta.CPU, nil
}
