package jail

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// limits bound one cage.
type limits struct {
	// cpu is in thousandths of a CPU.
	cpu    int64
	memory int64
	pids   int64
}

const (
	cpuPeriod = 100_000 // µs
	procsFile = "cgroup.procs"
)

func (l limits) quota() int64 { return l.cpu * cpuPeriod / 1000 }

// controllers are the cgroups of cages, whose names are paths like "covey/1a2b3c4d/sb_1".
type controllers interface {
	// set makes the cgroup, if need be, and sets its limits.
	set(name string, l limits) error
	// dirs are the cgroup's directories, one for each hierarchy.
	dirs(name string) []string
	cpuTime(name string) (time.Duration, error)
}

// findControllers tells what this machine offers; nil and why where it is nothing.
func findControllers() (controllers, error) {
	switch mode := cgroups.Mode(); mode {
	case cgroups.Unified:
		return unified{"/sys/fs/cgroup"}, nil
	case cgroups.Legacy, cgroups.Hybrid:
		return findLegacy()
	}
	return nil, errors.New("no cgroups are mounted on /sys/fs/cgroup")
}

// legacy are hierarchies of cgroup v1.
type legacy struct{ subsystems []cgroup1.Subsystem }

func findLegacy() (controllers, error) {
	all, err := cgroup1.Default()
	if err != nil {
		return nil, err
	}
	var l legacy
	for _, s := range all {
		if slices.Contains([]cgroup1.Name{cgroup1.Cpu, cgroup1.Cpuacct, cgroup1.Memory, cgroup1.Pids}, s.Name()) {
			l.subsystems = append(l.subsystems, s)
		}
	}
	if len(l.subsystems) == 0 {
		return nil, errors.New("no hierarchy of cgroup v1 has cpu, cpuacct, memory or pids")
	}
	return l, nil
}

func (l legacy) set(name string, lim limits) error {
	period, quota := uint64(cpuPeriod), lim.quota()
	_, err := cgroup1.New(cgroup1.StaticPath("/"+name), &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Period: &period, Quota: &quota}, Memory: &specs.LinuxMemory{Limit: &lim.memory}, Pids: &specs.LinuxPids{Limit: &lim.pids},
	}, cgroup1.WithHierarchy(func() ([]cgroup1.Subsystem, error) { return l.subsystems, nil }))
	return err
}

func (l legacy) dirs(name string) (list []string) {
	for _, s := range l.subsystems {
		if p, ok := s.(interface{ Path(string) string }); ok {
			list = append(list, p.Path(name))
		}
	}
	// Hierarchies may be mounted together, under several names.
	return slices.CompactFunc(list, sameDir)
}

func sameDir(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

func (l legacy) cpuTime(name string) (time.Duration, error) {
	for _, s := range l.subsystems {
		if s.Name() != cgroup1.Cpuacct {
			continue
		}
		p, ok := s.(interface{ Path(string) string })
		if !ok {
			break
		}
		b, err := os.ReadFile(filepath.Join(p.Path(name), "cpuacct.usage"))
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
		return time.Duration(ns), err
	}
	return 0, errors.New("there is no hierarchy with cpuacct")
}

// unified is the hierarchy of cgroup v2.
type unified struct{ root string }

func (u unified) set(name string, l limits) error {
	quota, period := l.quota(), uint64(cpuPeriod)
	_, err := cgroup2.NewManager(u.root, "/"+name, u.offered(&cgroup2.Resources{
		CPU: &cgroup2.CPU{Max: cgroup2.NewCPUMax(&quota, &period)}, Memory: &cgroup2.Memory{Max: &l.memory}, Pids: &cgroup2.Pids{Max: l.pids},
	}))
	return err
}

// offered leaves out what the machine has no controller for: a hybrid machine may have given it to v1.
func (u unified) offered(r *cgroup2.Resources) *cgroup2.Resources {
	b, _ := os.ReadFile(filepath.Join(u.root, "cgroup.controllers"))
	has := strings.Fields(string(b))
	if !slices.Contains(has, "cpu") {
		r.CPU = nil
	}
	if !slices.Contains(has, "memory") {
		r.Memory = nil
	}
	if !slices.Contains(has, "pids") {
		r.Pids = nil
	}
	return r
}

func (u unified) dirs(name string) []string { return []string{filepath.Join(u.root, name)} }

func (u unified) cpuTime(name string) (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join(u.root, name, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Duration(us) * time.Microsecond, err
		}
	}
	return 0, errors.New("cpu.stat has no usage_usec")
}

// processes are the pids in the given cgroup directories.
func processes(dirs []string) (pids []int, err error) {
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, procsFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for field := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", dir, err)
			}
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}
