package plan

import (
	"fmt"
	"slices"
	"strings"
)

// Resources is an amount of what a sandbox needs.
type Resources struct {
	VCPUs    int64
	MemoryMB int64 // MiB
	DiskMB   int64 // MiB
	Slots    int64 // network slots: sandboxes
}

// Plus is the sum.
func (r Resources) Plus(o Resources) Resources {
	return Resources{r.VCPUs + o.VCPUs, r.MemoryMB + o.MemoryMB, r.DiskMB + o.DiskMB, r.Slots + o.Slots}
}

// Minus is the difference; negative where o has more.
func (r Resources) Minus(o Resources) Resources {
	return Resources{r.VCPUs - o.VCPUs, r.MemoryMB - o.MemoryMB, r.DiskMB - o.DiskMB, r.Slots - o.Slots}
}

// Fits tells whether r is no more than free in anything.
func (r *Resources) Fits(free *Resources) bool {
	return r.VCPUs <= free.VCPUs && r.MemoryMB <= free.MemoryMB && r.DiskMB <= free.DiskMB && r.Slots <= free.Slots
}

// String is for people.
func (r Resources) String() string {
	return fmt.Sprintf("%s, %d MiB of memory, %d MiB of disk, %s", plural(int(r.VCPUs), "vCPU"), r.MemoryMB, r.DiskMB, plural(int(r.Slots), "slot"))
}

// State is whether a host takes sandboxes.
type State uint8

// The states of hosts. Gone is that of rows without a host.
const (
	Gone State = iota
	Ready
	Cordoned
	Draining
	Lost
)

// String is the state in a sentence: "the host is ...".
func (s State) String() string {
	return [...]string{"gone", "ready", "cordoned", "draining", "lost"}[s]
}

// Host is what is known of a machine.
type Host struct {
	ID      string
	Address string // host:port of its agent
	Zone    string // failure domain; may be empty
	Version string
	State   State
	// Capacity is what it offers in all, Used what its sandboxes hold by its own account.
	Capacity, Used Resources
	Running        int
	Labels         map[string]string
	CPUFeatures    []string // that guests there can have; sorted
	// Machines are the machine models whose states load there; none: it does not say, and any may.
	Machines   []string
	VMMVersion string
	// KernelID names the kernel that it boots guests with.
	KernelID string
	// Baseline is the CPU baseline that it says holds there, BaselineGeneration that of the mesh's baselines when it heard of it.
	Baseline           []string
	BaselineGeneration int64
	// Drivers are VMM drivers with their accelerators, like "qemu/tcg".
	Drivers []string
	// Snapshots are those whose data it has; sorted.
	Snapshots []string
}

// Request describes a sandbox to be placed.
type Request struct {
	SandboxID   string
	Resources   Resources
	SnapshotID  string            // hosts that have it are better; may be empty
	CPUFeatures []string          // that the host's CPU must have
	Driver      string            // "qemu" or "qemu/tcg"; empty means any
	Machine     string            // model whose states must load there; empty means any
	KernelID    string            // that the snapshot was booted from; only told, as its memory has the kernel
	Labels      map[string]string // that the host must have
	HostID      string            // only this host, if not empty
	Exclude     []string          // hosts that have refused
	SpreadKey   string            // sandboxes with the same are spread; may be empty
	Apart       bool              // only hosts that have none of the same spread key
	ApartFrom   []string          // hosts that are known to have one, beside those that the fleet counts
}

// drives tells whether a host has a driver.
func (h *Host) drives(driver string) bool {
	if driver == "" {
		return true
	}
	for _, d := range h.Drivers {
		if name, _, _ := strings.Cut(d, "/"); d == driver || name == driver {
			return true
		}
	}
	return false
}

// loads tells whether states of a machine model load on a host.
func (h *Host) loads(machine string) bool {
	return machine == "" || len(h.Machines) == 0 || slices.Contains(h.Machines, machine)
}

// labelled tells whether a host has labels.
func (h *Host) labelled(want map[string]string) bool {
	for k, v := range want {
		if got, ok := h.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// features tells whether a host's CPU has features.
func (h *Host) features(want []string) bool {
	for _, f := range want {
		if _, has := slices.BinarySearch(h.CPUFeatures, f); !has {
			return false
		}
	}
	return true
}
