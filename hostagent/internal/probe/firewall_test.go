package probe

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// apart is a connection to the rules of a network namespace of its own.
func apart(t *testing.T) *nftables.Conn {
	t.Helper()
	made := make(chan *os.File)
	go func() {
		defer close(made)
		// The thread is not given back, and ends.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("a network namespace, which needs root: %v", err)
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
			return
		}
		made <- f
	}()
	ns := <-made
	if ns == nil {
		t.FailNow()
	}
	t.Cleanup(func() { ns.Close() })
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func passes(key expr.MetaKey) *nftables.Rule {
	return &nftables.Rule{Exprs: []expr.Any{
		&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(guestDevices)}, &expr.Verdict{Kind: expr.VerdictAccept},
	}}
}

func TestRulesOfOthersThatCutGuestsOffAreNamedWithTheRemedy(t *testing.T) {
	conn := apart(t)
	check := func(want Level, says ...string) {
		t.Helper()
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		c := forwarding(conn, nil)
		if c.Level != want {
			t.Fatalf("%+v, want %s", c, want)
		}
		for _, s := range says {
			if !strings.Contains(c.Text, s) {
				t.Errorf("%q does not say %q", c.Text, s)
			}
		}
	}
	drop, accept := nftables.ChainPolicyDrop, nftables.ChainPolicyAccept
	forward := func(table string, family nftables.TableFamily, name string, policy *nftables.ChainPolicy) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{
			Table: conn.AddTable(&nftables.Table{Name: table, Family: family}), Name: name, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: policy,
		})
	}
	forward("covey3", nftables.TableFamilyIPv4, "forward", &drop) // Ours.
	forward("harmless", nftables.TableFamilyINet, "forward", &accept)
	check(OK)
	docker := forward("filter", nftables.TableFamilyIPv4, "FORWARD", &drop)
	check(Lesser, "chain FORWARD of table ip filter", "iptables -I FORWARD -i cvy+ -j ACCEPT", "-o cvy+")
	user := conn.AddChain(&nftables.Chain{Table: docker.Table, Name: "DOCKER-USER"})
	check(Lesser, "iptables -I DOCKER-USER -i cvy+ -j ACCEPT; iptables -I DOCKER-USER -o cvy+ -j ACCEPT")
	for i, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		r := passes(key)
		r.Table, r.Chain = user.Table, user
		conn.AddRule(r)
		check([]Level{Lesser, OK}[i])
	}
	firewalld := forward("firewalld", nftables.TableFamilyINet, "filter_FORWARD", &accept)
	conn.AddRule(&nftables.Rule{Table: firewalld.Table, Chain: firewalld, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}})
	check(Lesser, "chain filter_FORWARD of table inet firewalld", `nft insert rule inet firewalld filter_FORWARD iifname "cvy*" accept`)
	if c := forwarding(conn, []string{"nat", "filter"}); !strings.Contains(c.Text, "iptables-legacy -S FORWARD") {
		t.Errorf("of iptables-legacy it says %q", c.Text)
	}
}
