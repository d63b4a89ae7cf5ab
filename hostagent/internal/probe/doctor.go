package probe

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu"
)

// Level says how bad a check's result is.
type Level string

// The levels. A host agent runs where nothing has Failed.
const (
	OK     Level = "ok"
	Lesser Level = "--" // works, but less well than it could
	Failed Level = "FAIL"
)

// Check is one thing that was looked at.
type Check struct {
	Name  string
	Level Level
	// Text says what was found and, where something is missing, what to do.
	Text string
}

// DoctorConfig says what to look at. What is empty is not looked at.
type DoctorConfig struct {
	// Kernel is the guest's kernel (bzImage) and KernelID its content's name.
	Kernel, KernelID string
	// StateDir and MemoryDir are the agent's.
	StateDir, MemoryDir string
	// UID and GID for a trial's VMM.
	UID, GID int
}

// Doctor looks at everything that a host agent needs. The verdict on KVM is a new one, and kept.
func Doctor(ctx context.Context, conf DoctorConfig) []Check {
	list := []Check{root(), linux(), faults(), tun(), networkNamespace(), firewall(), cgroups(), compiler()}
	if conf.MemoryDir != "" {
		list = append(list, memoryDir(conf.MemoryDir))
	}
	q := emulator()
	list = append(list, q)
	if conf.Kernel == "" {
		return append(list, Check{"KVM", Lesser, "not tried: no guest kernel is known; say --config"})
	}
	if _, err := os.Stat(conf.Kernel); err != nil {
		return append(list, Check{"guest kernel", Failed, err.Error() + ": run guest-build"})
	}
	list = append(list, Check{"guest kernel", OK, conf.Kernel})
	if q.Level != OK {
		return list
	}
	return append(list, kvm(ctx, conf))
}

// Print writes checks as a table, and Healthy tells whether a host agent can run.
func Print(w io.Writer, list []Check) {
	width := 0
	for _, c := range list {
		width = max(width, len(c.Name))
	}
	for _, c := range list {
		fmt.Fprintf(w, "%-4s  %-*s  %s\n", c.Level, width, c.Name, c.Text)
	}
}

// Healthy: see Print.
func Healthy(list []Check) bool {
	return !slices.ContainsFunc(list, func(c Check) bool { return c.Level == Failed })
}

func root() Check {
	if uid := os.Geteuid(); uid != 0 {
		return Check{"user", Failed, fmt.Sprintf("runs as user %d: namespaces, cgroups and users of VMMs need root", uid)}
	}
	return Check{"user", OK, "root"}
}

func linux() Check {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Check{"kernel", Failed, err.Error()}
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	switch {
	case major < 6 || major == 6 && minor < 1:
		return Check{"kernel", Failed, "Linux " + release + ": 6.1 is needed"}
	case major == 6 && minor < 7:
		return Check{"kernel", Lesser, "Linux " + release + ": before 6.7 dirty memory is found page by page, so pauses take longer"}
	}
	return Check{"kernel", OK, "Linux " + release + ", " + runtime.GOARCH}
}

func openDevice(name, path, use string) Check {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return Check{name, Failed, fmt.Sprintf("%v: %s", err, use)}
	}
	f.Close()
	return Check{name, OK, path}
}

func faults() Check {
	return openDevice("page faults", "/dev/userfaultfd", "memory of snapshots is served through it (CONFIG_USERFAULTFD)")
}

func tun() Check {
	return openDevice("network devices", "/dev/net/tun", "guests are reached through it (modprobe tun)")
}

func networkNamespace() Check {
	done := make(chan error)
	go func() {
		// The thread is not given back, and ends.
		runtime.LockOSThread()
		done <- unix.Unshare(unix.CLONE_NEWNET)
	}()
	if err := <-done; err != nil {
		return Check{"namespaces", Failed, fmt.Sprintf("a network namespace cannot be made: %v", err)}
	}
	return Check{"namespaces", OK, "can be made"}
}

func cgroups() Check {
	const name = "cgroups"
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return Check{name, Failed, fmt.Sprintf("/sys/fs/cgroup: %v: VMMs could not be bounded", err)}
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		b, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		return controllers("version 2", strings.Fields(string(b)))
	}
	var have []string
	for _, c := range []string{"cpu", "memory", "pids"} {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", c, "tasks")); err == nil {
			have = append(have, c)
		}
	}
	return controllers("version 1", have)
}

func controllers(version string, have []string) Check {
	var missing []string
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return Check{"cgroups", Lesser, version + ", without " + strings.Join(missing, ", ") + ": VMMs are not bounded in that"}
	}
	return Check{"cgroups", OK, version}
}

func compiler() Check {
	path, err := exec.LookPath("gcc")
	if err != nil {
		return Check{"compiler", Failed, "gcc is not installed: it builds the object that QEMU's memory goes through (apt-get install gcc libc6-dev)"}
	}
	return Check{"compiler", OK, path}
}

func memoryDir(dir string) Check {
	const name = "memory directory"
	// It may not have been made yet.
	at := dir
	for !exists(at) && at != "/" {
		at = filepath.Dir(at)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return Check{name, Failed, fmt.Sprintf("%s: %v", dir, err)}
	}
	if st.Type != unix.TMPFS_MAGIC {
		return Check{name, Failed, fmt.Sprintf("%s does not lie in a tmpfs: say memory_dir: /dev/shm/covey", dir)}
	}
	return Check{name, OK, fmt.Sprintf("%s, %d MiB free", dir, st.Bavail*uint64(st.Bsize)>>20)}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func emulator() Check {
	d, err := qemu.New(qemu.Config{Accel: vmm.TCG})
	if err != nil {
		return Check{"QEMU", Failed, err.Error()}
	}
	defer d.Close()
	return Check{"QEMU", OK, d.Capabilities().Version + ", " + d.Capabilities().Machine}
}

func kvm(ctx context.Context, conf DoctorConfig) Check {
	v, err := KVM(ctx, ForQEMU(KVMConfig{
		Kernel: conf.Kernel, KernelID: conf.KernelID, Dir: filepath.Join(conf.StateDir, "probe"), UID: conf.UID, GID: conf.GID, Fresh: true,
	}))
	switch {
	case err != nil:
		return Check{"KVM", Lesser, fmt.Sprintf("could not be tried: %v; VMs are emulated in software", err)}
	case !v.Works:
		return Check{"KVM", Lesser, v.Reason + "; VMs are emulated in software, which is slower"}
	}
	return Check{"KVM", OK, v.Reason}
}

// ForQEMU completes a configuration so that KVM is tried with QEMU.
func ForQEMU(conf KVMConfig) KVMConfig {
	conf.Driver = func() (vmm.Driver, error) { return qemu.New(qemu.Config{Accel: vmm.KVM, Log: conf.Log}) }
	if d, err := qemu.New(qemu.Config{Accel: vmm.KVM}); err == nil {
		conf.DriverID = d.Capabilities().Machine + " " + d.Capabilities().Version
		d.Close()
	}
	return conf
}
