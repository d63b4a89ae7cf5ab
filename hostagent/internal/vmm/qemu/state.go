package qemu

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

const (
	stateMagic = "COVEYQS"
	// formerState does not say which processor the VM had: it is the standard one of the machine. Every state that is written says it.
	formerState = 1
	stateFormat = 2
	stateHeader = 52
	// Limits of a state file's parts, in bytes; the stream has about 60 KiB.
	maxMeta   = 64 << 10
	maxStream = 64 << 20
	// tolerableDrift is what time synchronisation in the guest can make up for.
	tolerableDrift = 0.0005
)

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
		m.TSCKHz = tscKHz()
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

// writeState wraps QEMU's stream into a state file.
func (d *Driver) writeState(path string, cfg *vmm.Config, cpu vmm.CPU, stream []byte) error {
	b, err := encodeState(d.meta(cfg, cpu), stream)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

func encodeState(meta stateMeta, body []byte) ([]byte, error) {
	m, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	b := make([]byte, stateHeader, stateHeader+len(m)+len(body))
	b[copy(b, stateMagic)] = stateFormat
	binary.LittleEndian.PutUint32(b[8:], uint32(len(m)))
	binary.LittleEndian.PutUint64(b[12:], uint64(len(body)))
	b = append(append(b, m...), body...)
	sum := sha256.Sum256(b[stateHeader:])
	copy(b[20:], sum[:])
	return b, nil
}

// openState verifies a state file and returns QEMU's stream in a file in memory, with the processor that the VM needs.
func (d *Driver) openState(path string, cfg *vmm.Config) (*os.File, vmm.CPU, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, vmm.CPU{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, stateHeader+maxMeta+maxStream+1))
	if err != nil {
		return nil, vmm.CPU{}, err
	}
	meta, body, err := decodeState(b)
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
			"state_khz", meta.TSCKHz, "host_khz", tscKHz(), "drift", drift)
	}
}

func decodeState(b []byte) (meta stateMeta, body []byte, err error) {
	if len(b) < stateHeader || !bytes.HasPrefix(b, []byte(stateMagic)) {
		return meta, nil, fmt.Errorf("%w: it is no state file of this driver", vmm.ErrIncompatible)
	}
	if f := b[len(stateMagic)]; f < formerState || f > stateFormat {
		return meta, nil, fmt.Errorf("%w: its format is %d, this host agent reads %d to %d", vmm.ErrIncompatible, f, formerState, stateFormat)
	}
	m, n := uint64(binary.LittleEndian.Uint32(b[8:])), binary.LittleEndian.Uint64(b[12:])
	rest := b[stateHeader:]
	if m > maxMeta || n > maxStream || m+n != uint64(len(rest)) {
		return meta, nil, fmt.Errorf("%w: it has %d bytes after its header, which announces %d and %d", vmm.ErrIncompatible, len(rest), m, n)
	}
	if sum := sha256.Sum256(rest); !bytes.Equal(sum[:], b[20:stateHeader]) {
		return meta, nil, fmt.Errorf("%w: it is damaged: its checksum is wrong", vmm.ErrIncompatible)
	}
	if err := json.Unmarshal(rest[:m], &meta); err != nil {
		return meta, nil, fmt.Errorf("%w: its description: %w", vmm.ErrIncompatible, err)
	}
	return meta, rest[m:], nil
}

// memoryFile makes a file that is nowhere but in memory.
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
