package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// registrySite is where the registry is on a wire; hosts are at sites of their own names.
const registrySite = "registry"

// wire is a switch in a network namespace, with a namespace for each site, whose link can be cut and slowed. A nil wire is loopback.
// The namespaces have no names: they end with the test.
type wire struct {
	t         *testing.T
	home, hub *os.File

	mu    sync.Mutex // guards sites
	sites map[string]*site
}

type site struct {
	ns   *os.File
	ip   net.IP
	link string // at the switch
}

func newWire(t *testing.T) *wire {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	w := &wire{t: t, sites: map[string]*site{}}
	var err error
	if w.home, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.home.Close() })
	w.hub = w.namespace()
	err = w.enter(w.hub, func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch"}}
		return errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge))
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// enter runs f on a thread that is in a namespace meanwhile. A thread that does not get home again ends.
func (w *wire) enter(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		if unix.Setns(int(w.home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func (w *wire) namespace() (ns *os.File) {
	w.t.Helper()
	err := w.enter(w.home, func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ns.Close() })
	return ns
}

// at is a site, which is made where it is new.
func (w *wire) at(name string) *site {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.sites[name]; s != nil {
		return s
	}
	n := len(w.sites) + 1
	s := &site{ns: w.namespace(), ip: net.IPv4(10, 77, 0, byte(n)).To4(), link: fmt.Sprintf("port%d", n)}
	err := w.enter(w.hub, func() error {
		bridge, err := netlink.LinkByName("switch")
		if err != nil {
			return err
		}
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: s.link, MasterIndex: bridge.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(s.ns.Fd())}
		return errors.Join(netlink.LinkAdd(pair), netlink.LinkSetUp(pair))
	})
	if err == nil {
		err = w.enter(s.ns, func() error {
			for _, name := range []string{"lo", "eth0"} {
				l, err := netlink.LinkByName(name)
				if err == nil && name == "eth0" {
					err = netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: s.ip, Mask: net.CIDRMask(24, 32)}})
				}
				if err = errors.Join(err, netlink.LinkSetUp(l)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.sites[name] = s
	if first := w.sites[registrySite]; first != s {
		eventually(w.t, name+" reaches the registry's site", func() bool { return w.reaches(s, first.ip) })
	}
	return s
}

// reaches tells whether an address answers at all: a port that nobody listens on is refused. The switch takes a moment to know a new link.
func (w *wire) reaches(s *site, ip net.IP) bool {
	err := w.enter(s.ns, func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(ip.String(), "1"), 100*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	})
	return err == nil || errors.Is(err, unix.ECONNREFUSED)
}

// inside runs f in a site's namespace.
func (w *wire) inside(name string, f func() error) error {
	if w == nil {
		return f()
	}
	return w.enter(w.at(name).ns, f)
}

func (w *wire) listen(name string) (lis net.Listener, err error) {
	addr := "127.0.0.1:0"
	if w != nil {
		addr = net.JoinHostPort(w.at(name).ip.String(), "0")
	}
	err = w.inside(name, func() (err error) {
		lis, err = net.Listen("tcp", addr)
		return err
	})
	return lis, err
}

// from makes a client call from a site.
func (w *wire) from(name string) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, addr string) (c net.Conn, err error) {
		err = w.inside(name, func() (err error) {
			c, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			return err
		})
		return c, err
	})
}

// port does something to a site's link at the switch.
func (w *wire) port(name string, do func(netlink.Link) error) {
	w.t.Helper()
	s := w.at(name)
	err := w.enter(w.hub, func() error {
		l, err := netlink.LinkByName(s.link)
		if err != nil {
			return err
		}
		return do(l)
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) cut(name string)  { w.t.Helper(); w.port(name, netlink.LinkSetDown) }
func (w *wire) mend(name string) { w.t.Helper(); w.port(name, netlink.LinkSetUp) }

// slow lets a site receive so many bytes a second; what it sends is slowed at the receivers.
func (w *wire) slow(name string, bytesPerSec uint64) {
	w.t.Helper()
	burst := max(16<<10, uint32(bytesPerSec/50)) // Of some packets at least: larger ones than it are lost.
	w.port(name, func(l netlink.Link) error {
		return netlink.QdiscReplace(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)},
			Rate:       bytesPerSec, Limit: 1 << 20, Buffer: netlink.Xmittime(bytesPerSec, burst),
		})
	})
}

// registry is how a host calls the registry.
func (h *host) registry() grpc.ClientConnInterface {
	if h.m.wire == nil {
		return h.m.conn
	}
	return h.m.dialRegistry(h.id)
}

// peers is how a host calls others.
func (h *host) peers() interface {
	Dial(string) (grpc.ClientConnInterface, error)
} {
	if h.m.wire == nil {
		return h.m
	}
	return &calls{from: h, conns: map[string]*grpc.ClientConn{}}
}

// calls are a host's connections to others, over the wire.
type calls struct {
	from *host

	mu    sync.Mutex // guards conns
	conns map[string]*grpc.ClientConn
}

func (c *calls) Dial(id string) (grpc.ClientConnInterface, error) {
	c.from.m.mu.Lock()
	to := c.from.m.hosts[id]
	c.from.m.mu.Unlock()
	if to == nil {
		return nil, fmt.Errorf("host %s is not known", id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns[to.addr] == nil {
		c.conns[to.addr] = dial(c.from.m.t, to.addr, c.from.m.wire.from(c.from.id))
	}
	return c.conns[to.addr], nil
}
