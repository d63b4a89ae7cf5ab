// Package boot is the guest's init: it makes the root filesystem ready, starts guestd's server and reaps orphans.
//
// The initramfs holds init's own binary and the modules of the virtio devices; the image on the disk holds nothing of
// Covey's. So init mounts the disk, moves into it, and puts its binary where programs in the guest find it, as a bind
// mount in /run.
//
// Chosen: PID 1 and the server are two processes of one binary. Rejected: one process for both, because PID 1 must wait
// for any child (wait4(-1)), which would take exit codes away from the server's own commands, and because a server that
// crashes could not be started again.
package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/guest/internal/identity"
	"github.com/coveyhq/covey/guest/internal/lease"
)

// Main never returns: when init cannot go on, the VM ends, and the console says why.
func Main() {
	if err := prepare(); err != nil {
		say("boot failed: %v", err)
		end()
	}
	supervise()
}

// say writes a line with the guest's uptime to the console.
func say(format string, args ...any) {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	fmt.Printf("covey-init %.2f %s\n", time.Duration(ts.Nano()).Seconds(), fmt.Sprintf(format, args...))
}

// newRoot is where the disk is mounted before it becomes the root.
const newRoot = "/root"

func prepare() error {
	if err := mountAll("", []mount{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	}); err != nil {
		return err
	}
	if err := console(); err != nil {
		return err
	}
	say("start")
	if err := checkTimer(); err != nil { // before anything waits for a time
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := waitForDevice("/dev/vda", 10*time.Second); err != nil {
		return err
	}
	// noinit_itable keeps the kernel from zeroing inode tables in the background, which would dirty the sandbox's disk;
	// discard gives the space of removed files back to the host.
	if err := unix.Mount("/dev/vda", newRoot, "ext4", unix.MS_NOATIME, "noinit_itable,discard"); err != nil {
		return fmt.Errorf("mount /dev/vda: %w", err)
	}
	if err := mountAll(newRoot, []mount{{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"}}); err != nil {
		return err
	}
	if err := offer(newRoot); err != nil {
		return err
	}
	if err := mountIdentity(newRoot); err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	return finish()
}

// finish does what needs the root filesystem in its place.
func finish() error {
	if err := grow("/dev/vda", "/"); err != nil {
		say("the filesystem keeps its size: %v", err)
	}
	if err := mountAll("", []mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	}); err != nil {
		return err
	}
	for link, to := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	// What commands may have open: as on Debian, few unless they ask for more.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: 512 << 10}); err != nil {
		return fmt.Errorf("set the limit of open files: %w", err)
	}
	if err := calm(); err != nil {
		return err
	}
	if err := configureNetwork(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	say("root filesystem and network are ready")
	return nil
}

// calm makes the kernel do less by itself while the guest is idle: each wake-up is time that all idle sandboxes of a host
// take together.
func calm() error {
	for name, value := range map[string]string{
		"vm/compaction_proactiveness": "0",  // else twice a second
		"vm/stat_interval":            "60", // seconds; else each
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// offer puts init's binary, as the commands that it also is, into /run/covey/bin.
func offer(root string) error {
	dir := filepath.Join(root, "run/covey/bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	command := filepath.Join(dir, lease.Command)
	if err := os.WriteFile(command, nil, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/init", command, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("offer %s: %w", lease.Command, err)
	}
	return nil
}

// mountIdentity puts the files of the guest's identity into memory, with what the image has in them, and over those in
// /etc. What is a link or missing there becomes an empty file, so that there is something to mount over.
func mountIdentity(root string) error {
	dir := filepath.Join(root, identity.Dir)
	for _, d := range []string{dir, filepath.Join(root, "etc")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for _, name := range identity.Names {
		over, file := filepath.Join(root, "etc", name), filepath.Join(dir, name)
		if st, err := os.Lstat(over); err != nil || !st.Mode().IsRegular() {
			if err := os.RemoveAll(over); err != nil {
				return err
			}
			if err := os.WriteFile(over, nil, 0o644); err != nil {
				return err
			}
		}
		content, err := os.ReadFile(over)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, over, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s over %s: %w", file, over, err)
		}
	}
	return nil
}

// console makes /dev/console init's output; without devtmpfs mounted by the kernel, init starts without one.
func console() error {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open /dev/console: %w", err)
	}
	for i := range 3 {
		if err := unix.Dup2(fd, i); err != nil {
			return err
		}
	}
	return nil
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func mountAll(root string, list []mount) error {
	for _, m := range list {
		target := root + m.target
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, target, m.kind, m.flags, m.data); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s on %s: %w", m.kind, target, err)
		}
	}
	return nil
}

// loadModules loads every module of a directory, in the order of their names.
func loadModules(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return err
	}
	sort.Strings(names)
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", filepath.Base(name), err)
		}
		// Its memory is the guest's own.
		os.Remove(name)
	}
	return nil
}

// waitForDevice waits for a device node. It polls: nothing runs yet that could tell.
func waitForDevice(path string, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(2 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return nil
		} else if time.Now().After(end) {
			return fmt.Errorf("no disk: %s did not appear within %v", path, limit)
		}
	}
}

// switchRoot makes the disk the root. The initramfs stays behind it; of it only init's own binary takes memory, and
// /proc/self/exe still finds that.
func switchRoot() error {
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(newRoot+dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}
