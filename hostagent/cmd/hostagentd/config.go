package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/cpu"
	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/caller"
)

// Config is hostagentd's configuration file.
type Config struct {
	Chassis chassis.Config `yaml:"chassis"`
	// HostID names this host in the mesh; lower-case letters, digits and dashes.
	HostID string `yaml:"host_id"`
	// StateDir is the agent's own directory: journal, sockets, overlays, builds, snapshots. No two agents share one.
	StateDir string `yaml:"state_dir"`
	// MemoryDir is a directory in a tmpfs for memory images.
	MemoryDir string `yaml:"memory_dir"`
	// Artifacts is the directory that guest-build has made.
	Artifacts string `yaml:"artifacts"`
	// Capacity is what sandboxes may take in all. What is left out is taken from the machine.
	Capacity CapacityConfig `yaml:"capacity"`
	Network  NetworkConfig  `yaml:"network"`
	Jail     JailConfig     `yaml:"jail"`
	Snapshot SnapshotConfig `yaml:"snapshots"`
	// Driver is "auto" (the default: what works here), "firecracker" or "qemu".
	Driver string `yaml:"driver"`
	// Accel is "auto" (the default), "kvm" or "tcg".
	Accel string `yaml:"accel"`
	// CPU is what guests see of the processor.
	CPU CPUConfig `yaml:"cpu"`
	// Registry says whether snapshots are uploaded.
	Registry RegistryConfig `yaml:"registry"`
	// Scheduler says whether heartbeats are sent. Default: where services can be found, by Consul or in chassis.peers.
	Scheduler *bool `yaml:"scheduler"`
	// Stop is what becomes of the sandboxes when the agent is told to end: "keep" (the default) or "destroy".
	Stop string `yaml:"stop"`
	// Starts is how many sandboxes may be starting at once; others wait. Default: twice the CPUs.
	Starts int `yaml:"starts"`
	// StartTime bounds one start. Default 3m.
	StartTime time.Duration `yaml:"start_time"`
	// BusyCPU is the CPU use, in CPUs, above which a sandbox is not idle though nothing calls it. Default 0.2; negative: CPU use does
	// not count.
	BusyCPU float64 `yaml:"busy_cpu"`
	// Labels and Zone are for placement.
	Labels map[string]string `yaml:"labels"`
	Zone   string            `yaml:"zone"`
}

// CPUConfig is what guests see of the processor.
type CPUConfig struct {
	// Mask are features that guests are not to have, by their names in /proc/cpuinfo: what microcode has disabled, or policy does.
	Mask []string `yaml:"mask"`
	// Model is a processor of QEMU's in place of the standard one, like "Skylake-Server-v4". Firecracker shows the host's.
	Model string `yaml:"model"`
}

// cpuModel is what a model of QEMU's may look like; features are for the mask.
var cpuModel = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,64}$`)

// CapacityConfig is what sandboxes may take in all.
type CapacityConfig struct {
	// VCPUs; default: the CPUs times Overcommit.
	VCPUs int `yaml:"vcpus"`
	// Overcommit is how many vCPUs are offered for each CPU. Default 4.
	Overcommit float64 `yaml:"overcommit"`
	// MemoryMB is MiB; default: nine tenths of the machine's.
	MemoryMB int64 `yaml:"memory_mb"`
	// DiskMB is MiB; default: nine tenths of what is free in StateDir.
	DiskMB int64 `yaml:"disk_mb"`
	// Slots is the most sandboxes at once. Default 64.
	Slots int `yaml:"slots"`
}

// NetworkConfig says how sandboxes reach the world.
type NetworkConfig struct {
	// Warm is how many slots are kept ready. Default 4.
	Warm int `yaml:"warm"`
	// Nameservers are given to guests. Default 1.1.1.1 and 8.8.8.8.
	Nameservers []string `yaml:"nameservers"`
}

// JailConfig says what VMMs run as.
type JailConfig struct {
	// UIDBase is the first of the unprivileged user ids. Default 200000.
	UIDBase int `yaml:"uid_base"`
}

// SnapshotConfig bounds what snapshots cost.
type SnapshotConfig struct {
	// CacheMB is how much of MemoryDir images that no VM uses may take, MiB. Default 2048.
	CacheMB int64 `yaml:"cache_mb"`
	// MaxChain is how many generations a snapshot may be deep until it is squashed in the background. Default 8.
	MaxChain int `yaml:"max_chain"`
}

// RegistryConfig says whether there is a snapshot registry.
type RegistryConfig struct {
	Enabled bool `yaml:"enabled"`
}

func loadConfig(path string) (Config, error) {
	c := Config{
		Chassis: chassis.Config{Service: caller.Host}, Driver: "auto", Accel: "auto", Stop: stopKeep, Starts: 2 * runtime.NumCPU(),
		Capacity: CapacityConfig{Overcommit: 4, Slots: 64},
		Network:  NetworkConfig{Warm: 4, Nameservers: []string{"1.1.1.1", "8.8.8.8"}},
		Jail:     JailConfig{UIDBase: 200000}, Snapshot: SnapshotConfig{CacheMB: 2048, MaxChain: 8},
	}
	err := chassis.LoadConfig(path, &c)
	return c, err
}

// What becomes of the sandboxes when the agent is told to end.
const (
	stopKeep    = "keep"
	stopDestroy = "destroy"
)

var hostID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// maxStateDir leaves room for the names of sockets, which the kernel bounds to 107 bytes.
const maxStateDir = 107 - len("/run/tpl_00000000000000000000000000/pager.sock")

// Validate says all that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
	}
	if err := c.Chassis.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("chassis: %w", err))
	}
	if !hostID.MatchString(c.HostID) {
		bad("host_id", "must be 1 to 63 characters of [a-z0-9-], not beginning or ending with a dash, got %q", c.HostID)
	}
	for key, dir := range map[string]string{"state_dir": c.StateDir, "memory_dir": c.MemoryDir, "artifacts": c.Artifacts} {
		if !filepath.IsAbs(dir) {
			bad(key, "must be an absolute path, got %q", dir)
		}
	}
	if n := len(filepath.Clean(c.StateDir)); n > maxStateDir {
		bad("state_dir", "must have at most %d characters, as sockets are made in it, has %d", maxStateDir, n)
	}
	oneOf := func(key, got string, legal ...string) {
		for _, l := range legal {
			if got == l {
				return
			}
		}
		bad(key, "must be one of %v, got %q", legal, got)
	}
	if err := cpu.Check(c.CPU.Mask); err != nil {
		bad("cpu.mask", "%w", err)
	}
	for _, f := range c.CPU.Mask {
		if slices.Contains(cpu.Essential(), f) {
			bad("cpu.mask", "must leave what no guest runs without (%s), got %q", cpu.Join(cpu.Essential()), f)
		}
	}
	if !cpuModel.MatchString(c.CPU.Model) {
		bad("cpu.model", "must be the name of one of QEMU's processors, got %q", c.CPU.Model)
	}
	oneOf("driver", c.Driver, "auto", "firecracker", "qemu")
	oneOf("accel", c.Accel, "auto", "kvm", "tcg")
	oneOf("stop", c.Stop, stopKeep, stopDestroy)
	for key, n := range map[string]int64{
		"capacity.vcpus": int64(c.Capacity.VCPUs), "capacity.memory_mb": c.Capacity.MemoryMB, "capacity.disk_mb": c.Capacity.DiskMB,
		"network.warm": int64(c.Network.Warm), "snapshots.cache_mb": c.Snapshot.CacheMB, "start_time": int64(c.StartTime),
	} {
		if n < 0 {
			bad(key, "must not be negative, got %d", n)
		}
	}
	for key, n := range map[string]int{"capacity.slots": c.Capacity.Slots, "starts": c.Starts, "snapshots.max_chain": c.Snapshot.MaxChain, "jail.uid_base": c.Jail.UIDBase} {
		if n < 1 {
			bad(key, "must be positive, got %d", n)
		}
	}
	if c.Capacity.Overcommit < 1 {
		bad("capacity.overcommit", "must be at least 1, got %g", c.Capacity.Overcommit)
	}
	for _, s := range c.Network.Nameservers {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			bad("network.nameservers", "must be IPv4 addresses, got %q", s)
		}
	}
	return errors.Join(errs...)
}

// room is what sandboxes may take, with what the configuration leaves out taken from the machine.
func (c *Config) room() (machine.Room, error) {
	r := machine.Room{VCPUs: c.Capacity.VCPUs, MemoryMB: c.Capacity.MemoryMB, DiskMB: c.Capacity.DiskMB, Slots: c.Capacity.Slots}
	if r.VCPUs == 0 {
		r.VCPUs = int(float64(runtime.NumCPU()) * c.Capacity.Overcommit)
	}
	if r.MemoryMB == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return r, fmt.Errorf("memory of the machine: %w", err)
		}
		r.MemoryMB = int64(info.Totalram) * int64(info.Unit) >> 20 * 9 / 10
	}
	if r.DiskMB == 0 {
		var fs unix.Statfs_t
		if err := unix.Statfs(c.StateDir, &fs); err != nil {
			return r, fmt.Errorf("disk of %s: %w", c.StateDir, err)
		}
		r.DiskMB = int64(fs.Bavail) * fs.Bsize >> 20 * 9 / 10
	}
	return r, nil
}

// wantsScheduler tells whether heartbeats are sent.
func (c *Config) wantsScheduler() bool {
	if c.Scheduler != nil {
		return *c.Scheduler
	}
	return c.Chassis.Consul.Address != "" || len(c.Chassis.Peers[caller.Scheduler]) > 0
}
