package book

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coveyhq/covey/scheduler/plan"
)

// clock is a time that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }

func newBook() (*Book, *clock) {
	c := &clock{time.Unix(1000, 0)}
	return New(Config{Now: c.now, Seed: 1}), c
}

func beat(b *Book, id string, used int64, sandboxes ...string) plan.State {
	return b.Beat(&plan.Host{
		ID: id, Address: id + ":1", State: plan.Ready, Capacity: plan.Resources{VCPUs: 4, MemoryMB: 400, DiskMB: 400, Slots: 4},
		Used: plan.Resources{VCPUs: used, MemoryMB: 100 * used, DiskMB: 100 * used, Slots: used},
	}, sandboxes)
}

func request(sandbox string, n int64) *plan.Request {
	return &plan.Request{SandboxID: sandbox, Resources: plan.Resources{VCPUs: n, MemoryMB: 100 * n, DiskMB: 100 * n, Slots: n}}
}

func place(t *testing.T, b *Book, r *plan.Request) Placement {
	t.Helper()
	p, err := b.Place(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustRefuse(t *testing.T, b *Book, r *plan.Request, why string) {
	t.Helper()
	p, err := b.Place(r)
	var none *plan.NoHostError
	if !errors.As(err, &none) {
		t.Errorf("%s: got %+v, %v", why, p, err)
	}
}

func used(t *testing.T, b *Book, id string) int64 {
	t.Helper()
	s, ok := b.Host(id)
	if !ok {
		t.Fatalf("no host %s", id)
	}
	return s.Used.VCPUs
}

func TestReservedRoomIsNotGivenTwice(t *testing.T) {
	b, _ := newBook()
	beat(b, "a", 0)
	p := place(t, b, request("sb_1", 3))
	if p.HostID != "a" || p.Address != "a:1" {
		t.Errorf("got %+v", p)
	}
	mustRefuse(t, b, request("sb_2", 2), "3 of 4 are reserved")
	b.Release(p.ReservationID)
	b.Release(p.ReservationID)
	place(t, b, request("sb_2", 4))
	if n := used(t, b, "a"); n != 4 {
		t.Errorf("%d vCPUs count as used, 4 are reserved", n)
	}
}

func TestAReservationEnds(t *testing.T) {
	for name, end := range map[string]func(*Book, *clock, Placement){
		"when its time is over":          func(_ *Book, c *clock, _ Placement) { c.advance(30 * time.Second) },
		"when it is released":            func(b *Book, _ *clock, p Placement) { b.Release(p.ReservationID) },
		"when the host shows it":         func(b *Book, _ *clock, _ Placement) { beat(b, "a", 0, "sb_1") },
		"when the sandbox is placed new": func(b *Book, _ *clock, _ Placement) { b.Release(place(t, b, request("sb_1", 1)).ReservationID) },
	} {
		b, c := newBook()
		beat(b, "a", 0)
		p := place(t, b, request("sb_1", 4))
		mustRefuse(t, b, request("sb_2", 1), name)
		end(b, c, p)
		beat(b, "a", 0)
		if _, err := b.Place(request("sb_2", 4)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAHeartbeatThatIsOlderThanTheStartDoesNotEndTheReservation(t *testing.T) {
	b, _ := newBook()
	beat(b, "a", 0)
	place(t, b, request("sb_1", 3))
	beat(b, "a", 1, "sb_0")
	mustRefuse(t, b, request("sb_2", 1), "1 is used and 3 are reserved")
	beat(b, "a", 4, "sb_0", "sb_1")
	if n := used(t, b, "a"); n != 4 {
		t.Errorf("%d vCPUs count as used after the host shows both, want 4", n)
	}
}

func TestHostsAreLostWhenSilentAndComeBack(t *testing.T) {
	b, c := newBook()
	beat(b, "a", 0)
	c.advance(11 * time.Second)
	b.Sweep()
	if s, _ := b.Host("a"); s.State != plan.Lost {
		t.Errorf("a silent host is %v", s.State)
	}
	mustRefuse(t, b, request("sb_1", 1), "its host is lost")
	if s := beat(b, "a", 0); s != plan.Ready {
		t.Errorf("a host that is heard again is %v", s)
	}
	p := place(t, b, request("sb_1", 1))
	c.advance(2 * time.Hour)
	b.Sweep()
	if len(b.Hosts()) != 0 {
		t.Errorf("hosts lost for long are still known: %+v", b.Hosts())
	}
	b.Release(p.ReservationID)
	beat(b, "b", 0)
	if n := used(t, b, "b"); n != 0 {
		t.Errorf("a new host is charged %d for an old one", n)
	}
}

func TestHostsThatMustNotTakeSandboxesGetNone(t *testing.T) {
	for name, test := range map[string]struct {
		do, undo func(*Book)
		state    plan.State
	}{
		"cordoned here": {func(b *Book) { b.Cordon("a", true) }, func(b *Book) { b.Cordon("a", false) }, plan.Cordoned},
		"cordoned by others": {
			func(b *Book) { b.SetCordoned(map[string]bool{"a": true, "z": true}) }, func(b *Book) { b.SetCordoned(nil) }, plan.Cordoned,
		},
		"draining by its own account": {
			func(b *Book) { b.Beat(&plan.Host{ID: "a", State: plan.Draining}, nil) }, func(b *Book) { beat(b, "a", 0) }, plan.Draining,
		},
	} {
		b, _ := newBook()
		beat(b, "a", 0)
		test.do(b)
		if s, _ := b.Host("a"); s.State != test.state {
			t.Errorf("%s: the host is %v", name, s.State)
		}
		mustRefuse(t, b, request("sb_1", 1), name)
		test.undo(b)
		if _, err := b.Place(request("sb_1", 1)); err != nil {
			t.Errorf("%s, and no longer: %v", name, err)
		}
	}
}

func TestAHostThatBeatsIsLostForItsCheckOnlyOnceThatHasFailedAsLongAsSilenceTakes(t *testing.T) {
	b, c := newBook()
	state := func() plan.State {
		s, _ := b.Host("a")
		return s.State
	}
	fail := func() { b.SetFailing(map[string]bool{"a": true}) }
	beat(b, "a", 0)
	fail() // Consul is back and has not looked again.
	for range 4 {
		c.advance(2 * time.Second)
		if s := beat(b, "a", 0); s != plan.Ready || state() != plan.Ready {
			t.Fatalf("for a check that has failed for a moment it is %v", s)
		}
	}
	b.SetFailing(map[string]bool{})
	fail()
	for range 4 {
		c.advance(2 * time.Second)
		beat(b, "a", 0)
		fail()
	}
	if state() != plan.Ready {
		t.Error("what failed before it passed counts still")
	}
	c.advance(3 * time.Second)
	if s := beat(b, "a", 0); s != plan.Lost || state() != plan.Lost {
		t.Errorf("for a check that fails for long it is %v", s)
	}
	mustRefuse(t, b, request("sb_1", 1), "its check fails")
	b.SetFailing(map[string]bool{})
	if state() != plan.Ready {
		t.Errorf("once the check passes it is %v", state())
	}
	// One that is silent too is believed to be gone at once.
	fail()
	c.advance(6 * time.Second)
	b.Sweep()
	if state() != plan.Lost {
		t.Errorf("silent for half of what it may be, with a check that fails, it is %v", state())
	}
}

func TestAHostThatIsBackIsNotLostForACheckThatFailedWhileItWasAway(t *testing.T) {
	b, c := newBook()
	fail := func() { b.SetFailing(map[string]bool{"a": true}) }
	beat(b, "a", 0)
	c.advance(4 * time.Second)
	fail()
	c.advance(8 * time.Second)
	b.Sweep()
	if s, _ := b.Host("a"); s.State != plan.Lost {
		t.Fatalf("silent, with a check that fails, it is %v", s.State)
	}
	// From here on it beats, and Consul looks again only in a while.
	for n := range 5 {
		if s := beat(b, "a", 0); s != plan.Ready {
			t.Fatalf("at beat %d after its return it is %v", n+1, s)
		}
		c.advance(2 * time.Second)
		fail()
	}
	c.advance(time.Second)
	if s := beat(b, "a", 0); s != plan.Lost {
		t.Errorf("for a check that fails for as long as silence takes after its return it is %v", s)
	}
}

func TestARefusalNamesTheHostsThatAreLostAndWhyAndSinceWhenAndWhatToDo(t *testing.T) {
	b, c := newBook()
	beat(b, "a", 0)
	beat(b, "b", 0)
	since := c.now().UTC().Format(time.RFC3339)
	c.advance(8 * time.Second)
	beat(b, "b", 0)
	b.SetFailing(map[string]bool{"b": true})
	failing := c.now().UTC().Format(time.RFC3339)
	c.advance(6 * time.Second)
	b.Sweep()
	pinned := request("sb_2", 1)
	pinned.HostID = "a"
	for _, r := range []*plan.Request{request("sb_1", 1), pinned} {
		_, err := b.Place(r)
		if err == nil {
			t.Fatal("it is placed")
		}
		words := []string{"is lost: no heartbeat came from it since " + since, "see that its host agent runs", "`covey hosts`"}
		if r.HostID == "" {
			words = append(words, "a is lost", "b is lost: Consul's health check of it fails since "+failing)
		}
		for _, w := range words {
			if strings.Count(err.Error(), w) != 1 {
				t.Errorf("%q does not say %q once", err, w)
			}
		}
	}
	if e := b.Explain(pinned); !strings.Contains(strings.Join(e.Verdicts[0].Reasons, ";"), since) {
		t.Errorf("explained: %+v", e)
	}
	// What is said is of now.
	beat(b, "a", 0)
	c.advance(20 * time.Second)
	b.Sweep()
	_, err := b.Place(pinned)
	if now := time.Unix(1014, 0).UTC().Format(time.RFC3339); err == nil || !strings.Contains(err.Error(), "since "+now) {
		t.Errorf("lost again: %v", err)
	}
}

func TestSandboxesOfOneSpreadKeyStaySpreadAfterTheyHaveStarted(t *testing.T) {
	b, c := newBook()
	beat(b, "a", 0)
	beat(b, "b", 2)
	r := request("sb_1", 1)
	r.SpreadKey = "web"
	if p := place(t, b, r); p.HostID != "a" {
		t.Fatalf("the first is on %s", p.HostID)
	}
	beat(b, "a", 1, "sb_1")
	c.advance(9 * time.Second)
	beat(b, "a", 1, "sb_1")
	beat(b, "b", 2)
	second := request("sb_2", 1)
	second.SpreadKey = "web"
	if p := place(t, b, second); p.HostID != "b" {
		t.Errorf("the second is on %s, where the first runs", p.HostID)
	}
	b.Release(place(t, b, second).ReservationID)
	beat(b, "a", 0) // The first has gone.
	if p := place(t, b, second); p.HostID != "a" {
		t.Errorf("after the first has gone the second is on %s", p.HostID)
	}
}

func TestConcurrentPlacementsNeverPromiseTooMuch(t *testing.T) {
	b := New(Config{Seed: 7})
	const hosts, workers, each = 30, 8, 60
	for i := range hosts {
		beat(b, fmt.Sprint("host", i), 0)
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range each {
				p, err := b.Place(request(fmt.Sprintf("sb_%d_%d", w, i), 1+rnd.Int64N(3)))
				if err == nil && rnd.IntN(2) == 0 {
					b.Release(p.ReservationID)
				}
				if rnd.IntN(4) == 0 {
					beat(b, fmt.Sprint("host", rnd.IntN(hosts)), 0)
					b.Sweep()
					b.Explain(request("sb_x", 1))
				}
			}
		})
	}
	wg.Wait()
	for _, h := range b.Hosts() {
		if h.Used.VCPUs > h.Capacity.VCPUs || h.Used.VCPUs < 0 {
			t.Errorf("%s: %d of %d vCPUs are promised", h.ID, h.Used.VCPUs, h.Capacity.VCPUs)
		}
	}
}

func TestTheQueueDoesNotGrowForEver(t *testing.T) {
	b, c := newBook()
	beat(b, "a", 0)
	for i := range 20000 {
		b.Release(place(t, b, request(fmt.Sprint("sb_", i), 1)).ReservationID)
		c.advance(10 * time.Millisecond)
	}
	if n := cap(b.queue.items); n > 10000 {
		t.Errorf("the queue has room for %d", n)
	}
}
