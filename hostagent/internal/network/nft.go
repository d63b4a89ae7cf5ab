package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// match is a part of a rule: expressions that load something into the first register and compare it, or end in a verdict.
type match []expr.Any

const register = 1

// Names are compared with the kernel's 16 bytes; a prefix with as many bytes as it has.
func ifName(key expr.MetaKey, op expr.CmpOp, data []byte) match {
	return match{&expr.Meta{Key: key, Register: register}, &expr.Cmp{Op: op, Register: register, Data: data}}
}

func padded(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

func in(name string) match        { return ifName(expr.MetaKeyIIFNAME, expr.CmpOpEq, padded(name)) }
func out(name string) match       { return ifName(expr.MetaKeyOIFNAME, expr.CmpOpEq, padded(name)) }
func inLike(prefix string) match  { return ifName(expr.MetaKeyIIFNAME, expr.CmpOpEq, []byte(prefix)) }
func outLike(prefix string) match { return ifName(expr.MetaKeyOIFNAME, expr.CmpOpEq, []byte(prefix)) }
func outUnlike(prefix string) match {
	return ifName(expr.MetaKeyOIFNAME, expr.CmpOpNeq, []byte(prefix))
}

// Offsets of addresses in an IPv4 header.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

func address(offset uint32, op expr.CmpOp, p netip.Prefix) match {
	p = p.Masked()
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return match{
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: register, Data: p.Addr().AsSlice()},
	}
}

func from(p netip.Prefix) match    { return address(sourceOffset, expr.CmpOpEq, p) }
func notFrom(p netip.Prefix) match { return address(sourceOffset, expr.CmpOpNeq, p) }
func to(p netip.Prefix) match      { return address(destinationOffset, expr.CmpOpEq, p) }

// toPort matches a destination port of one protocol.
func toPort(protocol byte, port uint16) match {
	return match{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{protocol}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// tracked matches packets of which conntrack's key has one of the bits.
func tracked(key expr.CtKey, bits uint32) match {
	return match{
		&expr.Ct{Key: key, Register: register},
		&expr.Bitwise{
			SourceRegister: register, DestRegister: register, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: make([]byte, 4)},
	}
}

// destinationNAT is conntrack's status bit of connections whose destination was rewritten (IPS_DST_NAT).
const destinationNAT = 1 << 5

func established() match {
	return tracked(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

func accept() match                  { return match{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() match                    { return match{&expr.Verdict{Kind: expr.VerdictDrop}} }
func jump(chain string) match        { return match{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }
func masquerade() match              { return match{&expr.Masq{}} }
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// ruleset is a table in the making.
type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
}

// newRuleset begins a table that takes the place of one of the same name, in one transaction.
func newRuleset(conn *nftables.Conn, name string) ruleset {
	t := &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}
	conn.AddTable(t) // deleting one that is not there would fail
	conn.DelTable(t)
	return ruleset{conn, conn.AddTable(t)}
}

func (r ruleset) chain(name string) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table})
}

func (r ruleset) filter(name string, hook *nftables.ChainHook, policy nftables.ChainPolicy) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{
		Name: name, Table: r.table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
}

func (r ruleset) sourceNAT(name string) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{
		Name: name, Table: r.table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
}

// rule appends a rule whose matches must all hold; the last is a verdict.
func (r ruleset) rule(c *nftables.Chain, matches ...match) { r.marked(c, nil, matches...) }

// marked is rule with a mark by which the rule is found again.
func (r ruleset) marked(c *nftables.Chain, mark []byte, matches ...match) {
	var exprs []expr.Any
	for _, m := range matches {
		exprs = append(exprs, m...)
	}
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: exprs, UserData: mark})
}
