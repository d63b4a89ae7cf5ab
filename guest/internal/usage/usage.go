// Package usage reads what the guest uses of its machine from /proc.
package usage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is the guest's resource use at one instant.
type Usage struct {
	VCPUs                        int
	CPUBusy                      time.Duration // of all CPUs since boot
	MemoryTotal, MemoryAvailable int64         // bytes
	DiskTotal, DiskAvailable     int64         // bytes of the root filesystem; available to an unprivileged user
	Load1                        float64
	Processes                    int
	OOMKills                     uint64
	NetRx, NetTx                 int64 // bytes on the network device since boot
}

// Reader reads from a /proc and the filesystem at Root. The zero value reads the guest's own.
type Reader struct {
	// Proc and Root are directories; empty means /proc and /.
	Proc, Root string
}

// device is the guest's network device.
const device = "eth0"

// userHZ is the unit of times in /proc/stat, per second: 100 for every program on x86-64 (sysconf(_SC_CLK_TCK)).
const userHZ = 100

// Read reads everything.
func (r Reader) Read() (u Usage, err error) {
	proc, root := r.Proc, r.Root
	if proc == "" {
		proc = "/proc"
	}
	if root == "" {
		root = "/"
	}
	for name, parse := range map[string]func(*Usage, string){
		"stat": readStat, "meminfo": readMeminfo, "loadavg": readLoad, "vmstat": readVmstat, "net/dev": readNet,
	} {
		b, err := os.ReadFile(filepath.Join(proc, name))
		if err != nil {
			return u, err
		}
		for line := range strings.Lines(string(b)) {
			parse(&u, line)
		}
	}
	if u.Processes, err = countProcesses(proc); err != nil {
		return u, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return u, fmt.Errorf("statfs %s: %w", root, err)
	}
	u.DiskTotal, u.DiskAvailable = int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize
	return u, nil
}

// readStat reads "cpu  user nice system idle iowait irq softirq ..." (proc(5)): busy is all but idle, waiting and stolen time.
func readStat(u *Usage, line string) {
	f := strings.Fields(line)
	if len(f) < 8 || !strings.HasPrefix(f[0], "cpu") {
		return
	}
	if f[0] != "cpu" {
		u.VCPUs++
		return
	}
	for _, i := range []int{1, 2, 3, 6, 7} {
		u.CPUBusy += time.Duration(number(f[i])) * time.Second / userHZ
	}
}

func readMeminfo(u *Usage, line string) {
	switch f := strings.Fields(line); {
	case len(f) < 2:
	case f[0] == "MemTotal:":
		u.MemoryTotal = number(f[1]) << 10
	case f[0] == "MemAvailable:":
		u.MemoryAvailable = number(f[1]) << 10
	}
}

func readLoad(u *Usage, line string) {
	one, _, _ := strings.Cut(line, " ")
	u.Load1, _ = strconv.ParseFloat(one, 64)
}

func readVmstat(u *Usage, line string) {
	if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
		u.OOMKills = uint64(number(strings.TrimSpace(v)))
	}
}

func readNet(u *Usage, line string) {
	name, rest, _ := strings.Cut(line, ":")
	if f := strings.Fields(rest); strings.TrimSpace(name) == device && len(f) >= 9 {
		u.NetRx, u.NetTx = number(f[0]), number(f[8])
	}
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

func countProcesses(proc string) (n int, err error) {
	d, err := os.Open(proc)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	for _, name := range names {
		if name[0] >= '0' && name[0] <= '9' {
			n++
		}
	}
	return n, nil
}

// Uptime is how long the kernel has run.
func Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// KernelRelease is the kernel's version.
func KernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// BootID is random per boot of the kernel.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}
