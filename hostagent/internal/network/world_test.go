package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// guest is what a VM would be: a namespace with a TAP of its own, between which and the slot's TAP frames are carried. Packets go through
// the slot's real device, as those of a VMM do.
type guest struct {
	ns *os.File
	h  home
}

// guests counts them, for names.
var guests atomic.Int64

func newGuest(t *testing.T, s *Slot) *guest {
	t.Helper()
	g := &guest{h: s.pool.home}
	name := fmt.Sprintf("t%s-%d", s.ID(), guests.Add(1))
	var err error
	if g.ns, err = g.h.newNamespace(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.ns.Close()
		if err := removeNamespace(name); err != nil {
			t.Error(err)
		}
	})
	var outer, inner *os.File
	must(t, g.h.inside(s.ns, func() (err error) { outer, err = openTAP(tapName); return err }))
	must(t, g.h.inside(g.ns, func() (err error) {
		if inner, err = openTAP("eth0"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		mac, _ := net.ParseMAC(GuestMAC)
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return err
		}
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		if err := configure(nl, "eth0", guestIP); err != nil {
			return err
		}
		return nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gatewayIP.AsSlice()})
	}))
	var wg sync.WaitGroup
	carry := func(from, to *os.File) {
		buf := make([]byte, 128<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			_, _ = to.Write(buf[:n])
		}
	}
	wg.Go(func() { carry(outer, inner) })
	wg.Go(func() { carry(inner, outer) })
	t.Cleanup(func() { outer.Close(); inner.Close(); wg.Wait() })
	return g
}

// openTAP opens a TAP device as a VMM's launcher does.
func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// dial connects from within the guest. It tells "" or what went wrong.
func (g *guest) dial(addr string, wait time.Duration) (answer string) {
	var fd int
	to := netip.MustParseAddrPort(addr)
	err := g.h.inside(g.ns, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		if err == unix.EINPROGRESS {
			err = nil
		}
		return err
	})
	if err != nil {
		return err.Error()
	}
	f := os.NewFile(uintptr(fd), "guest")
	defer f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if err := connected(ctx, f); err != nil {
		return err.Error()
	}
	_ = f.SetReadDeadline(time.Now().Add(wait))
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (g *guest) reaches(t *testing.T, addr, greeting string) {
	t.Helper()
	if got := g.dial(addr, time.Minute); got != greeting {
		t.Errorf("%s answers %q and not %q", addr, got, greeting)
	}
}

func (g *guest) reachesNot(t *testing.T, addrs ...string) {
	t.Helper()
	var wg sync.WaitGroup
	for _, a := range addrs {
		wg.Go(func() {
			if got := g.dial(a, 700*time.Millisecond); got != context.DeadlineExceeded.Error() && !strings.Contains(got, "unreachable") {
				t.Errorf("%s answers %q", a, got)
			}
		})
	}
	wg.Wait()
}

// world is what lies beyond the host: a namespace of its own, which has addresses there.
type world struct {
	ns *os.File
	h  home
}

var worldAddrs = []string{"203.0.113.7", "203.0.113.8", "10.77.0.7", "192.168.77.7", "169.254.169.254"}

func newWorld(t *testing.T) *world {
	t.Helper()
	name := fmt.Sprintf("tw%d", os.Getpid())
	h, err := newHome()
	must(t, err)
	ns, err := h.newNamespace(name)
	must(t, err)
	t.Cleanup(func() {
		if l, err := netlink.LinkByName(name); err == nil {
			must(t, netlink.LinkDel(l))
		}
		ns.Close()
		h.file.Close()
		must(t, removeNamespace(name))
	})
	w := &world{ns, h}
	must(t, h.inside(ns, func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: name, PeerNamespace: netlink.NsFd(h.file.Fd())}
		if err := nl.LinkAdd(veth); err != nil {
			return err
		}
		for _, a := range append([]string{"198.51.100.2"}, worldAddrs...) {
			addr, _ := netlink.ParseAddr(a + "/32")
			if err := nl.AddrAdd(veth, addr); err != nil {
				return err
			}
		}
		if err := nl.LinkSetUp(veth); err != nil {
			return err
		}
		host := &net.IPNet{IP: net.ParseIP("198.51.100.1"), Mask: net.CIDRMask(32, 32)}
		return nl.RouteAdd(&netlink.Route{LinkIndex: veth.Index, Dst: host, Scope: netlink.SCOPE_LINK})
	}))
	link, err := netlink.LinkByName(name)
	must(t, err)
	addr, _ := netlink.ParseAddr("198.51.100.1/32")
	must(t, netlink.AddrAdd(link, addr))
	must(t, netlink.LinkSetUp(link))
	for _, a := range worldAddrs {
		dst := &net.IPNet{IP: net.ParseIP(a), Mask: net.CIDRMask(32, 32)}
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}))
	}
	greet(t, h, ns, "0.0.0.0:80", "world")
	return w
}

// greet serves a greeting in a namespace.
func greet(t *testing.T, h home, ns *os.File, addr, greeting string) {
	t.Helper()
	var l net.Listener
	must(t, h.inside(ns, func() (err error) { l, err = net.Listen("tcp4", addr); return err }))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, greeting)
			c.Close()
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
}
