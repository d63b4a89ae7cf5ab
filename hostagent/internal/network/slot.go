package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names and addresses that are the same in every slot, so that a snapshot fits into any.
const (
	tapName    = "tap0"
	uplinkName = "eth0"
	// GuestMAC is the guest's address on the link, gatewayMAC that of tap0: a restored guest has it in its ARP cache.
	GuestMAC   = "06:00:ac:10:00:02"
	gatewayMAC = "06:00:ac:10:00:01"
	// GuestPort is where guestd listens.
	GuestPort = 7777
)

var (
	guestIP   = netip.MustParseAddr("172.16.0.2")
	gatewayIP = netip.MustParseAddr("172.16.0.1")
	// space is what all ranges are cut from.
	space = netip.MustParsePrefix("198.18.0.0/15")
)

const (
	guestBits  = 30 // prefix length of the guest's network, and of a veth pair's
	rangeSlots = 256
	ranges     = 128
)

func slotID(r, n int) string { return fmt.Sprintf("%s%d", rangePrefix(r), n) }

// rangePrefix begins the names of a range's slots: "cvy3-".
func rangePrefix(r int) string { return fmt.Sprintf("%s%d-", anyPrefix, r) }

// anyPrefix begins the names of the slots of all ranges.
const anyPrefix = "cvy"

// slotNumber is the n of a slot's id, if it is one of range r.
func slotNumber(r int, id string) (n int, ok bool) {
	if _, err := fmt.Sscanf(id, rangePrefix(r)+"%d", &n); err != nil || id != slotID(r, n) {
		return 0, false
	}
	return n, n >= 0 && n < rangeSlots
}

// rangeNet is the /22 of a range.
func rangeNet(r int) netip.Prefix { return netip.PrefixFrom(offset(space.Addr(), r*rangeSlots*4), 22) }

// ends are the addresses of the two ends of a slot's veth pair.
func ends(r, n int) (hostEnd, slotEnd netip.Addr) {
	base := offset(rangeNet(r).Addr(), n*4)
	return offset(base, 1), offset(base, 2)
}

func offset(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// Slot is the network place of one sandbox. It implements machine.Slot.
type Slot struct {
	pool *Pool
	n    int
	id   string
	// ns is the namespace, open while the slot is handed out or ready.
	ns *os.File
	// hostAllows: the host's table has rules of this slot.
	hostAllows bool
	released   atomic.Bool
}

// ID is the slot's name, "cvy<range>-<n>".
func (s *Slot) ID() string { return s.id }

// NetNS is the path of its namespace.
func (s *Slot) NetNS() string { return namespacePath(s.id) }

// TAP is its device in there: persistent, IFF_TAP|IFF_NO_PI|IFF_VNET_HDR with one queue, without an owner.
func (s *Slot) TAP() string { return tapName }

// MAC is the guest's address.
func (s *Slot) MAC() string { return GuestMAC }

// Release gives the slot back. It is destroyed in the background, with all that its guest may have left in it.
func (s *Slot) Release(context.Context) error {
	if !s.released.Swap(true) {
		s.pool.scrub(s)
	}
	return nil
}

// build makes slot n.
func (p *Pool) build(n int) (_ *Slot, err error) {
	s := &Slot{pool: p, n: n, id: slotID(p.rng.n, n)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("building slot %s: %w", s.id, err), p.destroy(s))
		}
	}()
	if err := p.destroy(s); err != nil {
		return nil, err
	}
	if s.ns, err = p.home.newNamespace(s.id); err != nil {
		return nil, err
	}
	if err := p.home.inside(s.ns, func() error { return p.furnish(s) }); err != nil {
		return nil, err
	}
	return s, p.connect(s)
}

// furnish makes what is in a slot's namespace, which the thread is in.
func (p *Pool) furnish(s *Slot) error {
	for _, kv := range [][2]string{
		{"ipv4/ip_forward", "1"}, // first: it resets others
		{"ipv4/conf/all/rp_filter", "1"}, {"ipv4/conf/default/rp_filter", "1"},
		{"ipv4/conf/all/accept_redirects", "0"}, {"ipv4/conf/default/accept_redirects", "0"},
		{"ipv4/conf/all/send_redirects", "0"}, {"ipv4/conf/default/send_redirects", "0"},
	} {
		if err := sysctl(kv[0], kv[1]); err != nil {
			return err
		}
	}
	for _, path := range []string{"ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"} {
		if err := sysctlIPv6(path, "1"); err != nil {
			return err
		}
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	// The rules are there before anything that they are to stop.
	if err := slotRules(conn, p.conf.Nameservers, policy{}); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	if err := p.uplink(nl, s); err != nil {
		return fmt.Errorf("uplink: %w", err)
	}
	if err := makeTAP(tapName); err != nil {
		return fmt.Errorf("TAP: %w", err)
	}
	return guestLink(nl)
}

// uplink makes the veth pair, one end of which lies in the host's namespace, and the way out.
func (p *Pool) uplink(nl *netlink.Handle, s *Slot) error {
	hostEnd, slotEnd := ends(p.rng.n, s.n)
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := nl.LinkSetUp(lo); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: uplinkName}, PeerName: s.id, PeerNamespace: netlink.NsFd(p.home.file.Fd())}
	if err := nl.LinkAdd(veth); err != nil {
		return err
	}
	if err := configure(nl, uplinkName, slotEnd); err != nil {
		return err
	}
	return nl.RouteAdd(&netlink.Route{LinkIndex: veth.Index, Gw: hostEnd.AsSlice()})
}

// guestLink gives tap0 its addresses. The guest's is written down for good: after a restore nobody needs to ask for it.
func guestLink(nl *netlink.Handle) error {
	link, err := nl.LinkByName(tapName)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(gatewayMAC)
	if err != nil {
		return err
	}
	if err := nl.LinkSetHardwareAddr(link, mac); err != nil {
		return err
	}
	if err := configure(nl, tapName, gatewayIP); err != nil {
		return err
	}
	guest, err := net.ParseMAC(GuestMAC)
	if err != nil {
		return err
	}
	return nl.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: guestIP.AsSlice(), HardwareAddr: guest,
	})
}

// configure gives a link its address and sets it up.
func configure(nl *netlink.Handle, name string, a netip.Addr) error {
	link, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(guestBits, 32)}}
	if err := nl.AddrAdd(link, addr); err != nil {
		return err
	}
	return nl.LinkSetUp(link)
}

// makeTAP makes a persistent TAP device, as the VMM's launcher will open it.
func makeTAP(name string) error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1)
}

// connect sets up the host's end of a slot.
func (p *Pool) connect(s *Slot) error {
	hostEnd, _ := ends(p.rng.n, s.n)
	if err := sysctlIPv6("ipv6/conf/"+s.id+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if err := sysctl("ipv4/conf/"+s.id+"/rp_filter", "1"); err != nil {
		return err
	}
	return configure(p.netlink, s.id, hostEnd)
}

// destroy removes whatever there is of a slot. The veth pair goes first: a process that is still in the namespace would keep it.
func (p *Pool) destroy(s *Slot) error {
	var errs []error
	if s.ns != nil {
		s.ns.Close()
	}
	link, err := p.netlink.LinkByName(s.id)
	if err == nil {
		err = p.netlink.LinkDel(link)
	}
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, unix.ENODEV) {
		errs = append(errs, fmt.Errorf("link %s: %w", s.id, err))
	}
	if s.hostAllows {
		errs = append(errs, p.disallow(s))
	}
	return errors.Join(append(errs, removeNamespace(s.id))...)
}

// open takes a slot that a former agent has made, if all of it is there.
func (p *Pool) open(n int) (_ *Slot, err error) {
	s := &Slot{pool: p, n: n, id: slotID(p.rng.n, n)}
	if s.ns, err = os.Open(namespacePath(s.id)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.ns.Close()
		}
	}()
	if _, err := p.netlink.LinkByName(s.id); err != nil {
		return nil, fmt.Errorf("link %s: %w", s.id, err)
	}
	return s, p.home.inside(s.ns, func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		for _, name := range []string{uplinkName, tapName} {
			if _, err := nl.LinkByName(name); err != nil {
				return fmt.Errorf("link %s in it: %w", name, err)
			}
		}
		return nil
	})
}
