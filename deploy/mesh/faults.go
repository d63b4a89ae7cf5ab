package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
)

// CutOff cuts a site off from everything, until Mend. What is sent to it or by it is lost, as with a cable that is pulled.
func (m *Mesh) CutOff(site string) error { return m.atSwitch(site, netlink.LinkSetDown) }

// Mend connects a site again that CutOff has cut off, and waits until it is reached.
func (m *Mesh) Mend(ctx context.Context, site string) error {
	if err := m.atSwitch(site, netlink.LinkSetUp); err != nil {
		return err
	}
	return until(ctx, site+" to be reached", func(ctx context.Context) error { return m.Backbone.reaches(ctx, site) })
}

// atSwitch does something to a site's link at the switch.
func (m *Mesh) atSwitch(site string, do func(netlink.Link) error) error {
	if err := m.hasSite(site); err != nil {
		return err
	}
	err := inside(m.Backbone.path(hub), func() error {
		l, err := netlink.LinkByName(m.Backbone.port(site))
		if err != nil {
			return err
		}
		return do(l)
	})
	if err != nil {
		return fmt.Errorf("link of site %s: %w", site, err)
	}
	return nil
}

// apart is the table in a site's namespace that keeps it from another.
func apart(other string) *nftables.Table {
	return &nftables.Table{Name: "apart-" + other, Family: nftables.TableFamilyIPv4}
}

// Part cuts a site off from one other alone, both ways, until Join.
func (m *Mesh) Part(site, other string) error {
	if err := errors.Join(m.hasSite(site), m.hasSite(other)); err != nil {
		return err
	}
	return inside(m.Backbone.path(site), func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		t := conn.AddTable(apart(other))
		dropAll(conn, t, nftables.ChainHookInput, sourceOffset, m.Backbone.Sites[other])
		dropAll(conn, t, nftables.ChainHookOutput, destinationOffset, m.Backbone.Sites[other])
		return conn.Flush()
	})
}

// Offsets of addresses in an IPv4 header.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

// dropAll adds a chain that drops what has an address at an offset of its header.
func dropAll(conn *nftables.Conn, t *nftables.Table, hook *nftables.ChainHook, offset uint32, a netip.Addr) {
	chain := conn.AddChain(&nftables.Chain{
		Name: fmt.Sprintf("hook%d", *hook), Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
}

// Join undoes Part; it may be called where there was none.
func (m *Mesh) Join(site, other string) error {
	if err := errors.Join(m.hasSite(site), m.hasSite(other)); err != nil {
		return err
	}
	return inside(m.Backbone.path(site), func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.AddTable(apart(other)) // Deleting one that is not there would fail.
		conn.DelTable(apart(other))
		return conn.Flush()
	})
}

// Slow lets a site receive and send so many bytes a second each, until it is called with 0.
func (m *Mesh) Slow(site string, bytesPerSec uint64) error {
	if err := m.atSwitch(site, func(l netlink.Link) error { return shape(l, bytesPerSec) }); err != nil {
		return err
	}
	return m.Inside(site, func() error {
		l, err := netlink.LinkByName(siteLink)
		if err != nil {
			return err
		}
		return shape(l, bytesPerSec)
	})
}

// shape bounds what a link sends, with a token bucket; 0 frees it.
func shape(l netlink.Link, bytesPerSec uint64) error {
	attrs := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)}
	if bytesPerSec == 0 {
		return netlink.QdiscDel(&netlink.Tbf{QdiscAttrs: attrs})
	}
	// A bucket of 20 ms, and of some packets at least; a queue of 100 ms.
	burst := max(16<<10, uint32(bytesPerSec/50))
	return netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: attrs, Rate: bytesPerSec, Limit: burst + max(64<<10, uint32(bytesPerSec/10)), Buffer: netlink.Xmittime(bytesPerSec, burst),
	})
}

// Traffic is how many bytes a site has received and sent over its link, since the mesh is up.
func (m *Mesh) Traffic(site string) (received, sent uint64, err error) {
	err = m.atSwitch(site, func(l netlink.Link) error {
		s := l.Attrs().Statistics
		received, sent = s.TxBytes, s.RxBytes // Its link's other end is at the switch.
		return nil
	})
	return received, sent, err
}

// KillHost ends a host as a power cut does: its agent, everything that runs there, and what it had in memory. Restart starts the
// agent again, with what is on its disk.
func (m *Mesh) KillHost(ctx context.Context, id string) error {
	if err := m.Kill(ctx, "hostagentd-"+id); err != nil {
		return err
	}
	dir := filepath.Join(m.Dir, id)
	err := until(ctx, "all of "+id+" to end", func(context.Context) error {
		left := processes(dir)
		for _, name := range left {
			pid, err := strconv.Atoi(name[strings.LastIndexByte(name, ' ')+1:])
			if err != nil {
				return &finalError{err}
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return &finalError{err}
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
	return errors.Join(err, os.RemoveAll(filepath.Join(memoryDir(m.Dir), id)))
}
