package firecracker

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/cpu"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
)

// processors are those that VMs here can have.
type processors struct {
	version version
	// plain are the features that KVM gives to guests, has those that the mask leaves.
	plain, has []string
	host       string
}

func newProcessors(v version, mask []string) (processors, error) {
	p := processors{version: v, host: cpu.Host()}
	plain, err := supported()
	if err != nil {
		// Without KVM no guest runs, and what would be missing is said by the probe.
		plain, err = hostFlags()
	}
	p.plain = plain
	p.has = cpu.Whole(cpu.Minus(plain, slices.Sorted(slices.Values(mask))))
	return p, err
}

// boot is the processor of a VM that is booted with a baseline, or without.
func (p *processors) boot(baseline []string) vmm.CPU {
	c := vmm.CPU{Machine: p.own(), Features: cpu.Limit(p.has, baseline)}
	if len(baseline) > 0 {
		c.Machine = p.baselined()
	}
	c.Masked = cpu.Minus(p.plain, c.Features)
	c.Model = modelOf(c.Masked)
	return c
}

// modelOf names a processor by what is taken away from the host's; the state has all of it.
func modelOf(masked []string) string {
	if len(masked) == 0 {
		return "host"
	}
	return "host,-" + strings.Join(masked, ",-")
}

// former is the processor of a VM that says nothing of it: an older agent has booted it.
func (p *processors) former() vmm.CPU {
	return vmm.CPU{Machine: p.own(), Model: modelOf(nil), Features: p.plain}
}

// own names the machine whose guests see the host's processor, baselined that whose guests see what a baseline leaves of it: its states load
// on all processors of the vendor that have the features.
func (p *processors) own() string { return p.machine(p.host) }

func (p *processors) baselined() string {
	vendor, _, _ := strings.Cut(p.host, "-")
	return p.machine(vendor)
}

func (p *processors) machine(processor string) string {
	return fmt.Sprintf("firecracker-%d.%d-%s", p.version.major, layoutVersion, processor)
}

func (p *processors) machines() []string { return []string{p.own(), p.baselined()} }

// fits says what keeps a VM with a processor from running here; the state format is version's to judge.
func (p *processors) fits(c vmm.CPU) error {
	if missing := cpu.Minus(c.Features, p.has); len(missing) > 0 {
		return fmt.Errorf("%w: its processor has %s, which guests of this host cannot have", vmm.ErrIncompatible, cpu.Join(missing))
	}
	return nil
}

// significant is KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the leaf's answer depends on the subleaf.
const significant = 1

// template is Firecracker's custom template that clears features.
func template(masked []string) api.CPUConfig {
	type at struct{ leaf, subleaf uint32 }
	words := map[at]map[cpu.Register][]uint8{}
	for _, f := range masked {
		b, ok := cpu.Where(f)
		if !ok {
			continue
		}
		w := words[at{b.Leaf, b.Subleaf}]
		if w == nil {
			w = map[cpu.Register][]uint8{}
			words[at{b.Leaf, b.Subleaf}] = w
		}
		w[b.Register] = append(w[b.Register], b.Bit)
	}
	var c api.CPUConfig
	order := func(a, b at) int { return int(int64(a.leaf)-int64(b.leaf))*2 + int(a.subleaf) - int(b.subleaf) }
	for _, l := range slices.SortedFunc(maps.Keys(words), order) {
		m := api.LeafModifier{Leaf: fmt.Sprintf("%#x", l.leaf), Subleaf: fmt.Sprintf("%#x", l.subleaf)}
		if l.leaf == 7 || l.leaf == 0xd {
			m.Flags = significant
		}
		for _, r := range slices.Sorted(maps.Keys(words[l])) {
			m.Modifiers = append(m.Modifiers, api.RegisterModifier{Register: r.String(), Bitmap: bitmap(words[l][r])})
		}
		c.CPUIDModifiers = append(c.CPUIDModifiers, m)
	}
	return c
}

// bitmap clears bits and leaves the others, as Firecracker writes it: the highest bit first.
func bitmap(clear []uint8) string {
	b := []byte(strings.Repeat("x", 32))
	for _, n := range clear {
		b[31-n] = '0'
	}
	return "0b" + string(b)
}

// The answer of KVM_GET_SUPPORTED_CPUID, from Linux's asm/kvm.h.
const (
	kvmGetSupportedCPUID = 0xc008ae05
	maxEntries           = 256
)

type cpuidEntry struct {
	function, index, flags uint32
	registers              cpu.Registers
	_                      [3]uint32
}

type cpuidTable struct {
	n, _    uint32
	entries [maxEntries]cpuidEntry
}

// supported are the features that KVM gives to guests.
func supported() ([]string, error) {
	f, err := os.Open("/dev/kvm")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t := cpuidTable{n: maxEntries}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), kvmGetSupportedCPUID, uintptr(unsafe.Pointer(&t))); e != 0 {
		return nil, fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", e)
	}
	return cpu.FromCPUID(func(leaf, subleaf uint32) cpu.Registers {
		for _, e := range t.entries[:min(t.n, maxEntries)] {
			if e.function == leaf && e.index == subleaf {
				return e.registers
			}
		}
		return cpu.Registers{}
	}), nil
}

// hostFlags are the features of /proc/cpuinfo.
func hostFlags() ([]string, error) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if name, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			return cpu.FromLinux(strings.Fields(flags)), nil
		}
	}
	return nil, errors.New("/proc/cpuinfo lists no flags")
}
