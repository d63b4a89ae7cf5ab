package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespaces is where named network namespaces are, for `ip netns` too.
const namespaces = "/run/netns"

func namespacePath(name string) string { return filepath.Join(namespaces, name) }

// home is the namespace of the agent.
type home struct{ file *os.File }

func newHome() (home, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	return home{f}, err
}

// inside runs f in a namespace, on a thread of its own for that long.
func (h home) inside(ns *os.File, f func() error) error {
	return h.away(func() error {
		if err := enter(ns); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return f()
	})
}

// away runs f on a thread that f may take into another namespace. If the thread does not get back home, it ends with its goroutine.
func (h home) away(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := f()
		if enter(h.file) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// enter puts the thread into a namespace. The file may be closed meanwhile.
func enter(ns *os.File) error {
	raw, err := ns.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.Setns(int(fd), unix.CLONE_NEWNET) })
	return errors.Join(err, failed)
}

// newNamespace makes a network namespace with a name.
func (h home) newNamespace(name string) (f *os.File, err error) {
	err = h.away(func() (err error) {
		f, err = unshareNamed(namespacePath(name))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", name, err)
	}
	return f, nil
}

func unshareNamed(path string) (_ *os.File, err error) {
	if err := os.MkdirAll(namespaces, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, err
	}
	f.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	return os.Open(path)
}

// removeNamespace removes the name of a namespace, which ends when the last process in it has; one that is not there is no error.
func removeNamespace(name string) error {
	path := namespacePath(name)
	// EINVAL: the file is there and nothing is mounted on it.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("network namespace %s: umount: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	return nil
}

// sysctl sets a variable of the current thread's namespace.
func sysctl(path, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0)
}

// sysctlIPv6 is sysctl where the kernel may be without IPv6.
func sysctlIPv6(path, value string) error {
	err := sysctl(path, value)
	if _, e := os.Stat("/proc/sys/net/ipv6"); errors.Is(e, fs.ErrNotExist) {
		return nil
	}
	return err
}
