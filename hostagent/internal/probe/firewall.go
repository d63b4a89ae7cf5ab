package probe

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// guestDevices is what the names of all devices begin with that guests' packets come through; see package network.
const guestDevices = "cvy"

// ownTable is what package network calls its tables.
var ownTable = regexp.MustCompile(`^covey\d+$`)

// firewall looks for rules of others that drop what guests send and receive. A packet that one table's chain drops is lost, whatever the
// others, ours among them, say of it.
func firewall() Check {
	conn, err := nftables.New()
	if err != nil {
		return Check{firewallName, Failed, fmt.Sprintf("%v: sandboxes are kept apart with nftables (CONFIG_NF_TABLES)", err)}
	}
	legacy, _ := os.ReadFile("/proc/net/ip_tables_names") // It is there only where there are such rules.
	return forwarding(conn, strings.Fields(string(legacy)))
}

const firewallName = "firewall"

// forwarding is the check for one network namespace; legacy are the tables of iptables-legacy, which nftables do not show.
func forwarding(conn *nftables.Conn, legacy []string) Check {
	var found []string
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
		chains, err := conn.ListChainsOfTableFamily(family)
		if err != nil {
			return Check{firewallName, Lesser, fmt.Sprintf("its rules cannot be listed: %v", err)}
		}
		for _, c := range chains {
			if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Type != nftables.ChainTypeFilter || ownTable.MatchString(c.Table.Name) {
				continue
			}
			how, err := drops(conn, c, chains)
			if err != nil {
				return Check{firewallName, Lesser, fmt.Sprintf("the rules of %s cannot be listed: %v", chainName(c), err)}
			}
			if how != "" {
				found = append(found, fmt.Sprintf("%s %s, which cuts guests off: %s", chainName(c), how, remedy(c, chains)))
			}
		}
	}
	for _, table := range legacy {
		if table == "filter" {
			found = append(found, "iptables-legacy has rules that are not looked at here: see to it that `iptables-legacy -S FORWARD` accepts "+guestDevices+"+")
		}
	}
	if len(found) > 0 {
		return Check{firewallName, Lesser, strings.Join(found, "; ")}
	}
	return Check{firewallName, OK, "no rules of others drop forwarded packets"}
}

func chainName(c *nftables.Chain) string {
	family := "ip"
	if c.Table.Family == nftables.TableFamilyINet {
		family = "inet"
	}
	return fmt.Sprintf("chain %s of table %s %s", c.Name, family, c.Table.Name)
}

// drops says how a chain drops guests' packets; empty where it does not, or something in its table accepts them, both ways.
func drops(conn *nftables.Conn, base *nftables.Chain, chains []*nftables.Chain) (how string, err error) {
	if base.Policy != nil && *base.Policy == nftables.ChainPolicyDrop {
		how = "drops what no rule accepts"
	}
	in, out := false, false
	for _, c := range chains {
		if c.Table.Name != base.Table.Name || c.Table.Family != base.Table.Family {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return "", err
		}
		for _, r := range rules {
			if how == "" && c.Name == base.Name && dropsAll(r) {
				how = "drops or rejects what comes to its end"
			}
			i, o := acceptsGuests(r)
			in, out = in || i, out || o
		}
	}
	if in && out {
		return "", nil
	}
	return how, nil
}

// dropsAll tells a rule without conditions that drops or rejects.
func dropsAll(r *nftables.Rule) (yes bool) {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			yes = true
		case *expr.Verdict:
			if e.Kind != expr.VerdictDrop {
				return false
			}
			yes = true
		default:
			return false
		}
	}
	return yes
}

// acceptsGuests tells a rule that accepts what comes in, or goes out, through guests' devices.
func acceptsGuests(r *nftables.Rule) (in, out bool) {
	var key expr.MetaKey
	accepts := false
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			key = e.Key
		case *expr.Cmp:
			if e.Op == expr.CmpOpEq && bytes.HasPrefix(e.Data, []byte(guestDevices)) {
				in, out = in || key == expr.MetaKeyIIFNAME, out || key == expr.MetaKeyOIFNAME
			}
		case *expr.Verdict:
			accepts = e.Kind == expr.VerdictAccept
		}
	}
	return in && accepts, out && accepts
}

// remedy is what lets guests' packets pass. Docker leaves a chain to its user; others' rules are asked before theirs where they have none.
func remedy(c *nftables.Chain, chains []*nftables.Chain) string {
	const docker = "DOCKER-USER"
	at := c.Name
	for _, o := range chains {
		if o.Table.Name == c.Table.Name && o.Table.Family == c.Table.Family && o.Name == docker {
			at = docker
		}
	}
	if c.Table.Name == "filter" && c.Table.Family == nftables.TableFamilyIPv4 {
		return fmt.Sprintf("iptables -I %s -i %s+ -j ACCEPT; iptables -I %[1]s -o %[2]s+ -j ACCEPT", at, guestDevices)
	}
	family := strings.Fields(chainName(c))[4]
	return fmt.Sprintf(`nft insert rule %s %s %s iifname "%s*" accept; nft insert rule %[1]s %[2]s %[3]s oifname "%[4]s*" accept`, family, c.Table.Name, at, guestDevices)
}
