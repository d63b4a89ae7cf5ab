package vmmtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tapName  = "tap0"
	guestMAC = "06:00:AC:10:00:02"
	// guestAddress is where testguest listens.
	guestAddress = "172.16.0.2:7777"
)

// netns is a network namespace with a TAP device in it. It lasts until it is closed; no name of it is left anywhere.
type netns struct{ f *os.File }

func newNetNS(t *testing.T) *netns {
	t.Helper()
	n := &netns{}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if n.f, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return makeTAP()
	})
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { n.f.Close() })
	return n
}

// path leads to the namespace from every process.
func (n *netns) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.f.Fd()) }

// dial connects to the guest.
func (n *netns) dial(ctx context.Context) (conn net.Conn, err error) {
	return conn, onThread(func() error {
		if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		d := net.Dialer{}
		conn, err = d.DialContext(ctx, "tcp", guestAddress)
		return err
	})
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// makeTAP makes the device, with the address of the guest's gateway, and takes it up.
func makeTAP() error {
	tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(tun)
	ifr, err := unix.NewIfreq(tapName)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(tun, unix.TUNSETPERSIST, 1); err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	for _, set := range []struct {
		request uint
		address []byte
	}{{unix.SIOCSIFADDR, []byte{172, 16, 0, 1}}, {unix.SIOCSIFNETMASK, []byte{255, 255, 255, 252}}} {
		if err := ifr.SetInet4Addr(set.address); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, set.request, ifr); err != nil {
			return err
		}
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

// eventually waits until f is true.
func eventually(t *testing.T, what string, within time.Duration, f func() bool) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("after %v still not: %s", within, what)
		}
	}
}
