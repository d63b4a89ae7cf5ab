package qemu

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/coveyhq/covey/guest/tsc"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/statefile"
)

// formerState does not say which processor the VM had: it is the standard one of the machine. Every state that is written says it.
const formerState = 1

// format is that of this driver's state files.
var format = statefile.Format{Magic: "COVEYQS", Oldest: formerState, Version: 2}

// tolerableDrift is what time synchronisation in the guest can make up for.
const tolerableDrift = 0.0005

// stateMeta says what a VM must be like to load a stream.
type stateMeta struct {
	// CPU is the guest's processor, the machine model included.
	CPU vmm.CPU `json:"cpu,omitzero"`
	// Machine is all that states of the former format say of the processor; others repeat CPU's.
	Machine     string `json:"machine"`
	Version     string `json:"version"`
	VCPUs       int    `json:"vcpus"`
	MemoryBytes int64  `json:"memory_bytes"`
	Disk        bool   `json:"disk"`
	Network     bool   `json:"network"`
	// TSCKHz is the frequency of the guest's time stamp counter under TCG, kHz.
	TSCKHz uint64 `json:"tsc_khz,omitempty"`
}

func (d *Driver) meta(cfg *vmm.Config, cpu vmm.CPU) stateMeta {
	m := stateMeta{
		CPU: cpu, Machine: cpu.Machine, Version: d.caps.Version, VCPUs: cfg.VCPUs, MemoryBytes: cfg.MemoryBytes,
		Disk: cfg.DiskSocket != "" || cfg.DiskPath != "", Network: cfg.TapName != "",
	}
	if d.conf.Accel == vmm.TCG {
		m.TSCKHz = tsc.KHz()
	}
	return m
}

// drift is by what part a guest's clock runs too fast with this host's counter.
func (m stateMeta) drift(mine stateMeta) float64 {
	if m.TSCKHz == 0 || mine.TSCKHz == 0 {
		return 0
	}
	return float64(mine.TSCKHz)/float64(m.TSCKHz) - 1
}

// fits says what keeps a VM like mine from loading a state of m, the processor aside.
func (m stateMeta) fits(mine stateMeta) error {
	for _, f := range []struct {
		what       string
		have, want any
	}{
		{"number of vCPUs", m.VCPUs, mine.VCPUs}, {"memory in bytes", m.MemoryBytes, mine.MemoryBytes},
		{"disk", m.Disk, mine.Disk}, {"network card", m.Network, mine.Network},
	} {
		if f.have != f.want {
			return fmt.Errorf("%w: its %s is %v, the VM's is %v", vmm.ErrIncompatible, f.what, f.have, f.want)
		}
	}
	return nil
}

// openState verifies a state file and returns QEMU's stream in a file in memory, with the processor that the VM needs.
func (d *Driver) openState(path string, cfg *vmm.Config) (*os.File, vmm.CPU, error) {
	var meta stateMeta
	body, err := format.Read(path, &meta)
	if err == nil {
		meta.CPU = d.cpus.saved(meta)
		err = errors.Join(d.cpus.fits(meta.CPU), meta.fits(d.meta(cfg, meta.CPU)))
	}
	if err != nil {
		return nil, vmm.CPU{}, fmt.Errorf("state %s: %w", path, err)
	}
	d.warnOfDrift(cfg, meta)
	stream, err := memoryFile("covey-state")
	if err != nil {
		return nil, vmm.CPU{}, err
	}
	_, err = stream.Write(body)
	if err == nil {
		_, err = stream.Seek(0, io.SeekStart)
	}
	if err != nil {
		stream.Close()
		return nil, vmm.CPU{}, err
	}
	return stream, meta.CPU, nil
}

// saved is the processor of the VM that a state is of.
func (p *processors) saved(m stateMeta) vmm.CPU {
	if m.CPU.Machine != "" {
		return m.CPU
	}
	cpu := p.former()
	cpu.Machine = m.Machine
	return cpu
}

func (d *Driver) warnOfDrift(cfg *vmm.Config, meta stateMeta) {
	if drift := meta.drift(d.meta(cfg, meta.CPU)); math.Abs(drift) > tolerableDrift {
		d.conf.Log.Warn("the guest's clock will not run right: the host's time stamp counter has another frequency", "sandbox", cfg.ID,
			"state_khz", meta.TSCKHz, "host_khz", tsc.KHz(), "drift", drift)
	}
}

// memoryFile makes a file that is nowhere but in memory.
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
