package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/machine"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(agentEnv); dir != "" {
		beAgent(dir)
	}
	goleak.VerifyTestMain(m)
}

func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// newPool makes a pool; at the test's end nothing of it may be left.
func newPool(t *testing.T, conf Config) *Pool {
	t.Helper()
	if conf.Owner == "" {
		conf.Owner = t.Name()
	}
	conf.Log = testLog(t)
	p, err := NewPool(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		noneLeft(t, p.rng.n)
	})
	return p
}

func noneLeft(t *testing.T, r int) {
	t.Helper()
	names, err := namespacesOf(r)
	if err != nil || len(names) > 0 {
		t.Errorf("namespaces left: %v, %v", names, err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Error(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, rangePrefix(r)) {
			t.Errorf("link %s left", l.Attrs().Name)
		}
	}
	if _, err := os.Stat(filepath.Join(defaultDir, strconv.Itoa(r))); err == nil {
		t.Errorf("range %d is still taken", r)
	}
}

func acquire(t *testing.T, p *Pool, n machine.Network) *Slot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := p.Acquire(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Release(context.Background()) })
	return s.(*Slot)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAGuestReachesTheInternetAndNothingElse(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Warm: 2})
	a, b := acquire(t, p, machine.Network{}), acquire(t, p, machine.Network{})
	guestA, guestB := newGuest(t, a), newGuest(t, b)
	greet(t, p.home, p.home.file, "0.0.0.0:8099", "host")
	greet(t, p.home, guestB.ns, "0.0.0.0:7777", "guest b")
	greet(t, p.home, guestA.ns, "0.0.0.0:7777", "guest a")

	guestA.reaches(t, "203.0.113.7:80", "world")
	guestB.reaches(t, "203.0.113.7:80", "world")
	hostA, slotA := ends(p.rng.n, a.n)
	hostB, slotB := ends(p.rng.n, b.n)
	guestA.reachesNot(t, "10.77.0.7:80", "192.168.77.7:80", "169.254.169.254:80", // beyond the host
		"198.51.100.1:8099", hostA.String()+":8099", hostB.String()+":8099", "172.16.0.1:8099", "172.16.0.1:7777", // the host, the slot
		slotA.String()+":7777", slotB.String()+":7777") // itself and the other guest from outside
	// Nobody outside reaches a guest, not even the host by its route.
	for _, to := range []netip.Addr{slotA, slotB} {
		if c, err := net.DialTimeout("tcp", to.String()+":7777", 300*time.Millisecond); err == nil {
			c.Close()
			t.Errorf("%s is reached from the host", to)
		}
	}
	// Only by dialling from inside.
	for s, want := range map[*Slot]string{a: "guest a", b: "guest b"} {
		c, err := s.DialGuest(t.Context())
		must(t, err)
		got, err := io.ReadAll(c)
		c.Close()
		if err != nil || string(got) != want {
			t.Errorf("%s answers %q, %v", s.ID(), got, err)
		}
	}
}

func TestAGuestCannotPretendToBeAnother(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{})
	s := acquire(t, p, machine.Network{})
	g := newGuest(t, s)
	g.reaches(t, "203.0.113.7:80", "world")
	must(t, g.h.inside(g.ns, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		old, _ := netlink.ParseAddr("172.16.0.2/30")
		other, _ := netlink.ParseAddr("172.16.0.3/29")
		if err := errors.Join(netlink.AddrDel(link, old), netlink.AddrAdd(link, other)); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gatewayIP.AsSlice()})
	}))
	g.reachesNot(t, "203.0.113.7:80")
}

func TestPoliciesHold(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Warm: 3, Nameservers: []netip.Addr{netip.MustParseAddr("192.168.77.7")}})
	greet(t, p.home, p.home.file, "0.0.0.0:8099", "host")
	s := acquire(t, p, machine.Network{AllowCIDRs: []string{"10.77.0.0/24", "198.51.100.1/32"}, DenyCIDRs: []string{"203.0.113.8/31", "10.77.0.8/32"}})
	g := newGuest(t, s)
	g.reaches(t, "10.77.0.7:80", "world")
	g.reaches(t, "203.0.113.7:80", "world")
	g.reaches(t, "198.51.100.1:8099", "host") // named, so allowed
	hostEnd, _ := ends(p.rng.n, s.n)
	g.reachesNot(t, "203.0.113.8:80", "10.77.0.8:80", "192.168.77.7:80", "169.254.169.254:80", hostEnd.String()+":8099")
	if got := g.dial("192.168.77.7:53", time.Minute); got != unix.ECONNREFUSED.Error() {
		t.Errorf("the nameserver answers %q", got) // it is reached, and nobody listens there
	}

	none := newGuest(t, acquire(t, p, machine.Network{Disabled: true, AllowCIDRs: []string{"203.0.113.0/24"}}))
	none.reachesNot(t, "203.0.113.7:80", "192.168.77.7:53", "198.51.100.1:8099")

	// What was allowed to one is not to the next in the same place.
	must(t, s.Release(t.Context()))
	for range 12 {
		next := acquire(t, p, machine.Network{})
		if next.n == s.n {
			newGuest(t, next).reachesNot(t, "10.77.0.7:80", "198.51.100.1:8099")
			return
		}
	}
	t.Error("the slot was not used again")
}

func TestIllegalPoliciesAreRefusedByField(t *testing.T) {
	p := newPool(t, Config{})
	many := make([]string, maxCIDRs+1)
	for field, n := range map[string]machine.Network{
		"network.allow_cidrs": {AllowCIDRs: []string{"10.0.0.0/8", "10.0.0.0/33"}},
		"network.deny_cidrs":  {DenyCIDRs: []string{"fd00::/8"}},
	} {
		for _, n := range []machine.Network{n, {AllowCIDRs: many}} {
			_, err := p.Acquire(t.Context(), n)
			var fe *machine.FieldError
			if !errors.As(err, &fe) || fe.Field != field && len(n.AllowCIDRs) < len(many) {
				t.Errorf("%s: %v", field, err)
			}
		}
	}
}

func TestTwentyAtOnceAreAllDifferentAndAllGivenBack(t *testing.T) {
	p := newPool(t, Config{Warm: 2, Max: 20})
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	began := time.Now()
	for range 20 {
		wg.Go(func() {
			s, err := p.Acquire(t.Context(), machine.Network{})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { s.Release(context.Background()) })
			mu.Lock()
			defer mu.Unlock()
			if seen[s.ID()] || s.TAP() != "tap0" || s.NetNS() != "/run/netns/"+s.ID() {
				t.Errorf("got %s %s %s", s.ID(), s.TAP(), s.NetNS())
			}
			seen[s.ID()] = true
		})
	}
	wg.Wait()
	t.Logf("20 slots took %s", time.Since(began))
	if _, err := p.Acquire(t.Context(), machine.Network{}); !errors.Is(err, ErrFull) {
		t.Errorf("the 21st of 20: %v", err)
	}
}

func TestWaitingForASlotEndsWithItsContextAndThePool(t *testing.T) {
	p := newPool(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Acquire(ctx, machine.Network{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who has gone: %v", err)
	}
	must(t, p.Close())
	if _, err := p.Acquire(t.Context(), machine.Network{}); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed pool: %v", err)
	}
}

func TestDialGuestKeepsNoThreadAndEndsWithItsContext(t *testing.T) {
	p := newPool(t, Config{})
	s := acquire(t, p, machine.Network{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if c, err := s.DialGuest(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody is there, and yet: %v, %v", c, err)
	}
	g := newGuest(t, s)
	if _, err := s.DialGuest(t.Context()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens, and yet: %v", err)
	}
	greet(t, p.home, g.ns, "0.0.0.0:7777", "hello")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			c, err := s.DialGuest(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if b, err := io.ReadAll(c); string(b) != "hello" {
				t.Errorf("read %q, %v", b, err)
			}
		})
	}
	wg.Wait()
	// Every thread is at home.
	var at unix.Stat_t
	must(t, unix.Stat("/proc/self/ns/net", &at))
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, task := range tasks {
		var st unix.Stat_t
		if err := unix.Stat("/proc/self/task/"+task.Name()+"/ns/net", &st); err == nil && st.Ino != at.Ino {
			t.Errorf("thread %s is in another namespace", task.Name())
		}
	}
}

func TestTwoAgentsSideBySideLeaveEachOtherAlone(t *testing.T) {
	a := newPool(t, Config{Owner: t.Name() + " a", Warm: 1})
	b := newPool(t, Config{Owner: t.Name() + " b", Warm: 1})
	if a.rng.n == b.rng.n {
		t.Fatal("they have the same range")
	}
	if _, err := NewPool(t.Context(), Config{Owner: a.conf.Owner, Log: testLog(t)}); err == nil {
		t.Error("the same owner twice")
	}
	ofA, ofB := acquire(t, a, machine.Network{}), acquire(t, b, machine.Network{})
	if _, err := b.Adopt(t.Context(), ofA.ID(), machine.Network{}); err == nil {
		t.Error("one adopts the other's slot")
	}
	if removed, err := b.Sweep(t.Context(), nil); len(removed) > 0 || err != nil {
		t.Errorf("swept %v, %v", removed, err)
	}
	newGuest(t, ofA)
	newGuest(t, ofB)
}

// agentEnv makes the test binary an agent that acquires three slots and waits to be killed.
const agentEnv = "COVEY_TEST_NETWORK_AGENT"

func beAgent(owner string) {
	p, err := NewPool(context.Background(), Config{Owner: owner, Warm: 1, Log: slog.Default()})
	for range 3 {
		var s machine.Slot
		if err == nil {
			s, err = p.Acquire(context.Background(), machine.Network{})
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(s.ID())
	}
	select {}
}

func TestSlotsOfAKilledAgentAreAdoptedOrSwept(t *testing.T) {
	runtime.LockOSThread() // the child dies with its parent's thread
	defer runtime.UnlockOSThread()
	newWorld(t)
	agent := exec.Command(os.Args[0])
	agent.Env = append(os.Environ(), agentEnv+"="+t.Name())
	agent.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := agent.StdoutPipe()
	must(t, err)
	must(t, agent.Start())
	var ids [3]string
	for i := range ids {
		if _, err := fmt.Fscanln(out, &ids[i]); err != nil {
			t.Fatal(err)
		}
	}
	must(t, agent.Process.Kill())
	_ = agent.Wait()

	p := newPool(t, Config{Warm: 1})
	s, err := p.Adopt(t.Context(), ids[1], machine.Network{AllowCIDRs: []string{"10.77.0.0/24"}})
	must(t, err)
	t.Cleanup(func() { s.Release(context.Background()) })
	if _, err := p.Adopt(t.Context(), ids[1], machine.Network{}); err == nil {
		t.Error("adopted twice")
	}
	removed, err := p.Sweep(t.Context(), []string{ids[1]})
	must(t, err)
	if strings.Contains(strings.Join(removed, " ")+" ", ids[1]+" ") || len(removed) < 2 {
		t.Errorf("swept %v of %v", removed, ids)
	}
	g := newGuest(t, s.(*Slot))
	g.reaches(t, "203.0.113.7:80", "world")
	g.reaches(t, "10.77.0.7:80", "world")
	g.reachesNot(t, "192.168.77.7:80")
}

func TestSlotsThatAreHandedOutOutliveThePool(t *testing.T) {
	p, err := NewPool(t.Context(), Config{Owner: t.Name(), Warm: 1, Log: testLog(t)})
	must(t, err)
	kept := acquire(t, p, machine.Network{})
	must(t, p.Close())
	if names, err := namespacesOf(p.rng.n); err != nil || len(names) != 1 || names[0] != kept.ID() {
		t.Errorf("left are %v, %v", names, err)
	}
	other := newPool(t, Config{Owner: "another"})
	if other.rng.n == p.rng.n {
		t.Error("another agent took the range")
	}
	again := newPool(t, Config{})
	s, err := again.Adopt(t.Context(), kept.ID(), machine.Network{})
	must(t, err)
	must(t, s.Release(t.Context()))
}

// BenchmarkBeginConnect is what DialGuest costs beside waiting for the guest.
func BenchmarkBeginConnect(b *testing.B) {
	p, err := NewPool(b.Context(), Config{Owner: b.Name(), Log: slog.Default()})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	s, err := p.take(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		err := p.home.inside(s.ns, func() error {
			fd, err := beginConnect()
			if err != nil {
				return err
			}
			return unix.Close(fd)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	p.scrub(s)
}

func TestForwardingIsSetBackInEachNamespaceByItsOwnLastAgent(t *testing.T) {
	h, err := newHome()
	must(t, err)
	defer h.file.Close()
	name, dir := fmt.Sprintf("tf%d", os.Getpid()), t.TempDir()
	ns, err := h.newNamespace(name)
	must(t, err)
	defer func() {
		ns.Close()
		must(t, removeNamespace(name))
	}()
	forwards := func() string {
		b, err := os.ReadFile(forwardingSysctl)
		must(t, err)
		return strings.TrimSpace(string(b))
	}
	must(t, os.WriteFile(filepath.Join(dir, "0"), nil, 0o644)) // An agent in another namespace.
	must(t, h.inside(ns, func() error {
		must(t, sysctl("ipv4/ip_forward", "0")) // A new one has the first namespace's.
		must(t, enableForwarding(dir))
		if forwards() != "1" {
			t.Error("it is not on")
		}
		return nil
	}))
	must(t, leave(dir)) // Somebody here.
	must(t, h.inside(ns, func() error {
		if forwards() != "1" {
			t.Error("an agent of another namespace has set it back")
		}
		must(t, leave(dir))
		if forwards() != "0" {
			t.Error("it is not set back")
		}
		return nil
	}))
}
