package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec says what to run and what it may have.
type Spec struct {
	// Path is the program, Args its arguments without its name, Env all of its environment.
	Path string
	Args []string
	Env  []string
	// UID and GID that it runs as; it has no further groups.
	UID, GID int
	// NetNS is the path of the network namespace to run in. Empty: a new one, with nothing in it.
	NetNS string
	// TAP is a TAP device in NetNS; it is opened there and inherited as the descriptor after Files. Empty: none.
	TAP string
	// Files are inherited as descriptors 3, 4, ... They remain the caller's, who closes its own.
	Files []*os.File
	// Stdout is inherited as standard output, where that is not for last words. Nil: it is.
	Stdout *os.File
	// Cgroups are the cgroup.procs or tasks files of the cgroups to stand in; of version 2 one at most.
	Cgroups []string
	// Binds is what the room holds. RoomAt is an existing directory that the room may be built on; nobody else sees it.
	Binds  []Bind
	RoomAt string
	// MaxFile is how large the files that the process writes may become, in bytes, rounded up to 512: a write beyond that fails.
	// 0: as the agent's. With it the process has no core dumps either. It is a shell that sets it, and executes Path.
	MaxFile int64
	// Jailer: the program is itself one that builds a cage. It starts as root with capabilities, in a room that it may write and mount in,
	// and becomes the user of the cage that it is told to.
	Jailer bool
	// Devices are paths of devices that the process may use, whoever may use them outside.
	Devices []string
}

// FirstFile is the descriptor number of Spec.Files[0] in the process.
const FirstFile = 3

// TAPFile is the descriptor number of the TAP device in the process.
func (s *Spec) TAPFile() int { return FirstFile + len(s.Files) }

func (s *Spec) check() error {
	for what, path := range map[string]string{"program": s.Path, "directory to build the room on": s.RoomAt} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("the %s must be an absolute path, got %q", what, path)
		}
	}
	for _, b := range s.Binds {
		if !filepath.IsAbs(b.Path) || b.At != "" && !filepath.IsAbs(b.At) {
			return fmt.Errorf("binds must be absolute paths, got %q at %q", b.Path, b.At)
		}
	}
	if s.UID < 0 || s.GID < 0 {
		return fmt.Errorf("user %d and group %d must not be negative", s.UID, s.GID)
	}
	if s.TAP != "" && s.NetNS == "" {
		return fmt.Errorf("TAP device %s: no network namespace was given", s.TAP)
	}
	return nil
}

// Resolve follows the symbolic links of paths, in place: they lead nowhere in a room. Empty paths stay so.
func Resolve(paths ...*string) (err error) {
	for _, p := range paths {
		if *p != "" {
			if *p, err = filepath.EvalSymlinks(*p); err != nil {
				return err
			}
		}
	}
	return nil
}

// Start starts a process. The context bounds the start alone.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	words, err := newWords()
	if err != nil {
		return nil, err
	}
	var p *Process
	var pid, pidfd int
	onThread(func() { pid, pidfd, err = start(&spec, words) })
	if err == nil {
		p, err = adopt(pid, pidfd, words)
	}
	if err != nil {
		words.Close()
		return nil, fmt.Errorf("start %s: %w", filepath.Base(spec.Path), err)
	}
	return p, nil
}

// onThread runs f on a thread of its own, so f may change what belongs to a thread, and returns when that thread is no more:
// while it stands in a cgroup the whole agent is listed there, and whoever empties the cgroup would kill the agent.
func onThread(f func()) {
	tid := make(chan int)
	go func() {
		runtime.LockOSThread()
		// The main thread cannot end, and /proc/self shows what belongs to it: keep it busy, and f runs on another.
		if unix.Gettid() == unix.Getpid() {
			onThread(f)
			runtime.UnlockOSThread()
			close(tid)
			return
		}
		f()
		tid <- unix.Gettid()
	}()
	if id, own := <-tid; own {
		awaitThread(id)
	}
}

// awaitThread returns when a thread of this process has ended. The kernel tells nobody (before pidfds of threads, Linux 6.9).
func awaitThread(tid int) {
	const look = 50 * time.Microsecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	for unix.Tgkill(unix.Getpid(), tid, 0) == nil {
		<-tick.C
	}
}

// start takes on the cage and forks. It runs on a thread of its own.
func start(s *Spec, words *os.File) (pid, pidfd int, err error) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return 0, 0, err
	}
	defer null.Close()
	fds := []uintptr{null.Fd(), words.Fd(), words.Fd()}
	if s.Stdout != nil {
		fds[1] = s.Stdout.Fd()
	}
	for _, f := range s.Files {
		fds = append(fds, f.Fd())
	}
	if err := enterNetwork(s.NetNS); err != nil {
		return 0, 0, err
	}
	if s.TAP != "" {
		tap, err := openTAP(s.TAP)
		if err != nil {
			return 0, 0, fmt.Errorf("open TAP device %s: %w", s.TAP, err)
		}
		defer tap.Close()
		fds = append(fds, tap.Fd())
	}
	cgroup, err := enterCgroups(s.Cgroups)
	if err != nil {
		return 0, 0, err
	}
	if cgroup != nil {
		defer cgroup.Close()
	}
	if err := enterRoom(s); err != nil {
		return 0, 0, fmt.Errorf("build the room: %w", err)
	}
	if !s.Jailer {
		if err := dropPrivileges(); err != nil {
			return 0, 0, fmt.Errorf("drop privileges: %w", err)
		}
	}
	return fork(s, fds, cgroup)
}

// shell runs limit, whose $0 is in blocks of 512 bytes and whose arguments are the environment, "--" and the command. The environment is for
// the command only: LD_PRELOAD would load into the shell as well. A signal that is ignored stays so in the command: its write fails
// instead.
const (
	shell = "/bin/sh"
	limit = `trap "" XFSZ && ulimit -c 0 && ulimit -f "$0" && while [ "$1" != -- ]; do export "$1"; shift; done && shift && exec "$@"`
)

// command is what fork executes.
func (s *Spec) command() (path string, argv, env []string) {
	argv = append([]string{s.Path}, s.Args...)
	if s.MaxFile <= 0 {
		return s.Path, argv, s.Env
	}
	blocks := strconv.FormatInt((s.MaxFile+511)/512, 10)
	return shell, slices.Concat([]string{shell, "-c", limit, blocks}, s.Env, []string{"--"}, argv), nil
}

func fork(s *Spec, fds []uintptr, cgroup *os.File) (pid, pidfd int, err error) {
	pidfd = -1
	sys := &syscall.SysProcAttr{
		Setsid:     true,
		Credential: &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.GID)},
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		PidFD:      &pidfd,
	}
	if cgroup != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(cgroup.Fd())
	}
	path, argv, env := s.command()
	pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{Dir: "/", Env: env, Files: fds, Sys: sys})
	if err != nil {
		return 0, 0, fmt.Errorf("execute %s: %w", path, err)
	}
	if pidfd < 0 {
		// The kernel is older than 5.4; nothing else could be done to this process either.
		err := errors.Join(errors.New("the kernel gave no pidfd"), unix.Kill(pid, unix.SIGKILL))
		unix.Wait4(pid, nil, 0, nil)
		return 0, 0, err
	}
	return pid, pidfd, nil
}

// enterNetwork enters the namespace at path, or a new one.
func enterNetwork(path string) error {
	if path == "" {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return nil
	}
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// openTAP opens a TAP device of the thread's network namespace. Its packets have the header that lets guest and host leave
// checksums and segmentation to each other; QEMU finds out by itself.
func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// dropPrivileges sees to it that nothing which the thread executes has or gains a capability, as root either.
func dropPrivileges() error {
	for c := uintptr(0); ; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); errors.Is(err, unix.EINVAL) && c > 0 {
			break // the kernel knows no more of them
		} else if err != nil {
			return fmt.Errorf("capability %d: %w", c, err)
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}
