package mesh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Sites of a backbone, beside the hosts, which are named by their ids. Each is what can fail or be cut off by itself.
const (
	ControlSite  = "control" // gatewayd, sandboxd, schedulerd
	RegistrySite = "registry"
	ObjectsSite  = "objects"
	ConsulSite   = "consul"
	DatabaseSite = "postgres"
)

// hub is the namespace with the switch; whoever uses the mesh stands there.
const hub = "backbone"

// backboneNet is used nowhere else. It is private (RFC 1918), so no guest reaches it; and as all of it is within namespaces that no
// link leads out of, nobody outside does.
var backboneNet = netip.MustParsePrefix("10.144.0.0/24")

// switchLink and siteLink are names of links in the hub's and in the sites' namespaces.
const (
	switchLink = "switch"
	siteLink   = "eth0"
)

// Backbone is the network of a mesh whose parts are each at a site of their own: a network namespace with one link to a switch.
type Backbone struct {
	// Prefix begins the names of its namespaces; it is the mesh's alone.
	Prefix string `json:"prefix"`
	// Sites are addresses, by site.
	Sites map[string]netip.Addr `json:"sites"`
}

// backbonePrefix tells the meshes of a machine apart.
func backbonePrefix(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "covey-" + hex.EncodeToString(sum[:4]) + "-"
}

func (b *Backbone) path(site string) string { return filepath.Join(namespaces, b.Prefix+site) }

// port is the name of a site's link at the switch.
func (b *Backbone) port(site string) string {
	return fmt.Sprintf("port%d", b.Sites[site].As4()[3])
}

// layOut makes the switch and the sites that are not there yet.
func (b *Backbone) layOut(sites []string) error {
	if b.Sites == nil {
		b.Sites = map[string]netip.Addr{}
	}
	for i, site := range append([]string{hub}, sites...) {
		b.Sites[site] = netip.AddrFrom4([4]byte{10, 144, 0, byte(i + 1)})
		if _, err := os.Stat(b.path(site)); err == nil {
			continue
		}
		if err := newNamespace(b.path(site)); err != nil {
			return err
		}
		furnish := b.makeSite
		if site == hub {
			furnish = func(string) error { return inside(b.path(hub), b.makeSwitch) }
		}
		if err := furnish(site); err != nil {
			// One that is half made would be taken for a whole one the next time.
			return errors.Join(fmt.Errorf("site %s: %w", site, err), removeNamespace(b.path(site)))
		}
	}
	return nil
}

// makeSwitch makes the bridge, in the hub's namespace.
func (b *Backbone) makeSwitch() error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: switchLink}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	return errors.Join(b.address(hub, switchLink), up("lo"))
}

func (b *Backbone) makeSite(site string) error {
	ns, err := os.Open(b.path(site))
	if err != nil {
		return err
	}
	defer ns.Close()
	err = inside(b.path(hub), func() error {
		bridge, err := netlink.LinkByName(switchLink)
		if err != nil {
			return err
		}
		pair := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: b.port(site), MasterIndex: bridge.Attrs().Index},
			PeerName:  siteLink, PeerNamespace: netlink.NsFd(ns.Fd()),
		}
		return errors.Join(netlink.LinkAdd(pair), netlink.LinkSetUp(pair))
	})
	if err != nil {
		return err
	}
	return inside(b.path(site), func() error {
		// Host agents want it, and set it back when they end: here it is on from the first to the last.
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return err
		}
		return errors.Join(up("lo"), b.address(site, siteLink))
	})
}

// address gives a link of the current namespace a site's address and sets it up.
func (b *Backbone) address(site, link string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: b.Sites[site].AsSlice(), Mask: net.CIDRMask(backboneNet.Bits(), 32)}}
	return errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
}

func up(link string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// remove removes the namespaces, and with them the links and the switch.
func (b *Backbone) remove() error {
	var errs []error
	for _, path := range entries(namespaces, b.Prefix) {
		errs = append(errs, removeNamespace(path))
	}
	return errors.Join(errs...)
}

// reaches tells whether anything at a site answers the hub: a port that nobody listens on is refused.
func (b *Backbone) reaches(ctx context.Context, site string) error {
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	c, err := b.dial(ctx, "tcp", netip.AddrPortFrom(b.Sites[site], 1).String())
	if err == nil {
		return c.Close()
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return err
}

// dial connects from the hub.
func (b *Backbone) dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = inside(b.path(hub), func() error {
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Dial connects to an address of the mesh: from its backbone where it has one, else as anything on this machine does.
func (m *Mesh) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if m.Backbone == nil {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	return m.Backbone.dial(ctx, network, addr)
}

// Inside runs f in a site's network namespace; a listener or connection that it makes stays there.
func (m *Mesh) Inside(site string, f func() error) error {
	if err := m.hasSite(site); err != nil {
		return err
	}
	return inside(m.Backbone.path(site), f)
}

func (m *Mesh) hasSite(site string) error {
	if m.Backbone == nil {
		return errors.New("the mesh is on loopback: it has no sites")
	}
	if _, ok := m.Backbone.Sites[site]; !ok {
		return fmt.Errorf("the mesh has no site %q", site)
	}
	return nil
}
