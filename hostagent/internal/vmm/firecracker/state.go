package firecracker

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

const (
	stateMagic = "COVEYFS"
	// formerState does not say which features the processor had: all of the host's. Every state that is written says it.
	formerState = 1
	stateFormat = 2
	stateHeader = 52
	// Limits of a state file's parts, in bytes; the state has about 20 KiB.
	maxMeta  = 64 << 10
	maxState = 64 << 20
)

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
	body, err := io.ReadAll(io.NewSectionReader(from, 0, maxState+1))
	if err != nil {
		return err
	}
	if len(body) == 0 || len(body) > maxState {
		return fmt.Errorf("Firecracker has written a state of %d bytes, want 1 to %d", len(body), maxState)
	}
	b, err := encodeState(d.meta(cfg, cpu), body)
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

// openState verifies a state file and returns Firecracker's state, with the processor that the VM has.
func (d *Driver) openState(path string, cfg *vmm.Config) ([]byte, vmm.CPU, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, vmm.CPU{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, stateHeader+maxMeta+maxState+1))
	if err != nil {
		return nil, vmm.CPU{}, err
	}
	meta, body, err := decodeState(b)
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

func decodeState(b []byte) (meta stateMeta, body []byte, err error) {
	if len(b) < stateHeader || !bytes.HasPrefix(b, []byte(stateMagic)) {
		return meta, nil, fmt.Errorf("%w: it is no state file of this driver", vmm.ErrIncompatible)
	}
	if f := b[len(stateMagic)]; f < formerState || f > stateFormat {
		return meta, nil, fmt.Errorf("%w: its format is %d, this host agent reads %d to %d", vmm.ErrIncompatible, f, formerState, stateFormat)
	}
	m, n := uint64(binary.LittleEndian.Uint32(b[8:])), binary.LittleEndian.Uint64(b[12:])
	rest := b[stateHeader:]
	if m > maxMeta || n > maxState || m+n != uint64(len(rest)) {
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
