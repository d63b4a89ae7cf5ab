package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// allowChain has what single slots may reach of the host.
const allowChain = "allow"

// hostTable is the name of a range's table in the host's namespace.
func hostTable(r int) string { return "covey" + strconv.Itoa(r) }

// hostRules makes the host's table of a range: guests reach no other guest and not the host, nothing reaches them that they did not
// ask for, and what goes out is masqueraded.
//
// Chosen: a table for each range, so that agents on one machine never touch each other's. Rejected: one for all, which would need a
// count of its users.
func hostRules(conn *nftables.Conn, n int) error {
	r, ours := newRuleset(conn, hostTable(n)), rangePrefix(n)
	r.chain(allowChain)
	input := r.filter("input", nftables.ChainHookInput, nftables.ChainPolicyAccept)
	r.rule(input, inLike(ours), jump(allowChain))
	r.rule(input, inLike(ours), drop())

	forward := r.filter("forward", nftables.ChainHookForward, nftables.ChainPolicyAccept)
	r.rule(forward, inLike(ours), notFrom(rangeNet(n)), drop())
	r.rule(forward, inLike(ours), outLike(anyPrefix), drop())
	r.rule(forward, outLike(ours), established(), accept())
	r.rule(forward, outLike(ours), drop())
	// What the host redirects elsewhere, like the published port of a container, is the host's.
	r.rule(forward, inLike(ours), tracked(expr.CtKeySTATUS, destinationNAT), drop())

	r.rule(r.sourceNAT("postrouting"), from(rangeNet(n)), outUnlike(anyPrefix), masquerade())
	return conn.Flush()
}

// allow lets a slot's guest reach addresses of the host that its policy names. Denials hold in the slot's namespace already.
func (p *Pool) allow(s *Slot, pol policy) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: hostTable(p.rng.n), Family: nftables.TableFamilyIPv4}
	r, c := ruleset{conn, t}, &nftables.Chain{Name: allowChain, Table: t}
	for _, a := range pol.allow {
		r.marked(c, []byte(s.id), in(s.id), to(a), accept())
	}
	s.hostAllows = true
	return conn.Flush()
}

// disallow removes what allow has added.
func (p *Pool) disallow(s *Slot) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: hostTable(p.rng.n), Family: nftables.TableFamilyIPv4}
	rules, err := conn.GetRules(t, &nftables.Chain{Name: allowChain, Table: t})
	if err != nil {
		return err
	}
	for _, r := range rules {
		if bytes.Equal(r.UserData, []byte(s.id)) {
			if err := conn.DelRule(r); err != nil {
				return err
			}
		}
	}
	s.hostAllows = false
	return conn.Flush()
}

// removeHostTable removes the table of a range, if it is there.
func removeHostTable(n int) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: hostTable(n), Family: nftables.TableFamilyIPv4}
	conn.AddTable(t) // deleting one that is not there would fail
	conn.DelTable(t)
	return conn.Flush()
}

// forwarding begins the name of the file that keeps what ip_forward was before the first agent. It is a setting of a network namespace, and
// agents of one machine may be in several, as those of a test that cuts hosts off are: so there is a file for each.
const forwarding = "ip_forward-"

// forwardingFile is that of the thread's namespace.
func forwardingFile(dir string) (string, error) {
	info, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, fmt.Sprintf("%s%d", forwarding, info.Sys().(*syscall.Stat_t).Ino)), nil
}

const forwardingSysctl = "/proc/sys/net/ipv4/ip_forward"

// enableForwarding has the host forward packets. Callers hold the lock of the directory.
func enableForwarding(dir string) error {
	was, err := os.ReadFile(forwardingSysctl)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(was)) == "1" {
		return nil
	}
	path, err := forwardingFile(dir)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, was, 0o644); err != nil {
		return err
	}
	return os.WriteFile(forwardingSysctl, []byte("1"), 0)
}

// leave undoes what the agents of this namespace share, if none has its table any more, and then what those of the machine do, if no range is
// anybody's any more. Callers hold the lock of the directory, whose file goes with it.
func leave(dir string) error {
	if err := restoreForwarding(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			return nil
		}
	}
	err = os.Remove(filepath.Join(dir, directoryLock))
	// The directories may have become another's in between.
	_ = os.Remove(dir)
	_ = os.Remove(filepath.Dir(dir))
	_ = os.Remove(namespaces)
	return err
}

// restoreForwarding sets ip_forward of this namespace back, unless there is another agent in it.
func restoreForwarding(dir string) error {
	path, err := forwardingFile(dir)
	if err != nil {
		return err
	}
	was, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if n, err := strconv.Atoi(strings.TrimPrefix(t.Name, "covey")); err == nil && t.Name == hostTable(n) {
			return nil
		}
	}
	return errors.Join(os.WriteFile(forwardingSysctl, was, 0), os.Remove(path))
}
