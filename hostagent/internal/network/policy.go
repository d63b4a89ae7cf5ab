package network

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/machine"
)

// builtin are the ranges that no guest reaches unless its policy names them: everything that is not the public Internet.
var builtin = prefixes(
	"0.0.0.0/8",      // this network
	"10.0.0.0/8",     // private, RFC 1918
	"100.64.0.0/10",  // shared, RFC 6598
	"127.0.0.0/8",    // loopback
	"169.254.0.0/16", // link-local; clouds keep credentials there
	"172.16.0.0/12",  // private
	"192.0.0.0/24",   // protocol assignments
	"192.168.0.0/16", // private
	"198.18.0.0/15",  // benchmarks; slots
	"224.0.0.0/4",    // multicast
	"240.0.0.0/4",    // reserved, and broadcast
)

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// policy is what one guest may reach. Denials win over allowances, those over the builtin ranges.
type policy struct {
	disabled    bool
	allow, deny []netip.Prefix
}

func parsePolicy(n machine.Network) (policy, error) {
	p := policy{disabled: n.Disabled}
	var err error
	if p.allow, err = parseCIDRs("network.allow_cidrs", n.AllowCIDRs); err != nil {
		return p, err
	}
	p.deny, err = parseCIDRs("network.deny_cidrs", n.DenyCIDRs)
	return p, err
}

// maxCIDRs bounds a policy's rules.
const maxCIDRs = 64

func parseCIDRs(field string, list []string) (all []netip.Prefix, err error) {
	if len(list) > maxCIDRs {
		return nil, &machine.FieldError{Field: field, Problem: fmt.Sprintf("must have at most %d entries, got %d", maxCIDRs, len(list))}
	}
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil || !p.Addr().Is4() {
			return nil, &machine.FieldError{Field: field, Problem: fmt.Sprintf("must be IPv4 ranges like 203.0.113.0/24, got %.40q", s)}
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

// isDefault tells that the policy is what a slot is built with.
func (p policy) isDefault() bool { return !p.disabled && len(p.allow) == 0 && len(p.deny) == 0 }

// Chains of the table in a slot's namespace.
const (
	slotTable   = "covey"
	policyChain = "policy"
)

// slotRules makes the table of a slot's namespace. What comes from the guest is either part of a connection that was allowed or has
// to pass the policy; whoever it claims to be from and whatever is meant for the namespace itself is dropped.
func slotRules(conn *nftables.Conn, nameservers []netip.Addr, p policy) error {
	r := newRuleset(conn, slotTable)
	input := r.filter("input", nftables.ChainHookInput, nftables.ChainPolicyDrop)
	r.rule(input, in("lo"), accept())
	r.rule(input, in(tapName), from(host(guestIP)), established(), accept())

	rules := r.chain(policyChain)
	forward := r.filter("forward", nftables.ChainHookForward, nftables.ChainPolicyDrop)
	r.rule(forward, in(uplinkName), out(tapName), established(), accept())
	r.rule(forward, in(tapName), notFrom(host(guestIP)), drop())
	r.rule(forward, in(tapName), out(uplinkName), established(), accept())
	r.rule(forward, in(tapName), out(uplinkName), jump(policyChain))
	r.policy(rules, nameservers, p)

	r.rule(r.sourceNAT("postrouting"), out(uplinkName), masquerade())
	return conn.Flush()
}

// applyPolicy gives a slot another policy.
func applyPolicy(conn *nftables.Conn, nameservers []netip.Addr, p policy) error {
	t := &nftables.Table{Name: slotTable, Family: nftables.TableFamilyIPv4}
	r, rules := ruleset{conn, t}, &nftables.Chain{Name: policyChain, Table: t}
	conn.FlushChain(rules)
	r.policy(rules, nameservers, p)
	return conn.Flush()
}

func (r ruleset) policy(c *nftables.Chain, nameservers []netip.Addr, p policy) {
	if p.disabled {
		return // what returns from this chain is dropped
	}
	for _, d := range p.deny {
		r.rule(c, to(d), drop())
	}
	for _, a := range p.allow {
		r.rule(c, to(a), accept())
	}
	for _, a := range nameservers {
		r.rule(c, to(host(a)), toPort(unix.IPPROTO_UDP, 53), accept())
		r.rule(c, to(host(a)), toPort(unix.IPPROTO_TCP, 53), accept())
	}
	for _, b := range builtin {
		r.rule(c, to(b), drop())
	}
	r.rule(c, accept())
}
