package book

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/coveyhq/covey/scheduler/plan"
)

// Timing are a Book's times; zero values mean the defaults.
type Timing struct {
	// Silence is how long a host may not be heard from until it counts as lost. Hosts beat every 2 s. Default 10 s.
	Silence time.Duration `yaml:"silence"`
	// Forget is how long a host may be lost until it is forgotten. Default 1 h.
	Forget time.Duration `yaml:"forget"`
	// Reservation is how long room is held. Default 30 s.
	Reservation time.Duration `yaml:"reservation"`
	// WarmUp is how long after its start a scheduler waits for hosts that it may not know yet, before it says that none fits. Default 5 s.
	WarmUp time.Duration `yaml:"warm_up"`
}

// WithDefaults fills in what was left out.
func (t Timing) WithDefaults() Timing {
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{{&t.Silence, 10 * time.Second}, {&t.Forget, time.Hour}, {&t.Reservation, 30 * time.Second}, {&t.WarmUp, 5 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	return t
}

// Config is what a Book is made of.
type Config struct {
	Timing Timing
	Log    *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// AwaitCordons: SetCordoned will be called. Until then, while warming up, the book is not Ready.
	AwaitCordons bool
	// Seed makes its choices repeatable; 0 means random.
	Seed uint64
}

// Status is a host and how it stands.
type Status struct {
	plan.Host                // State is the scheduler's; Used includes what is reserved
	Heard          time.Time // its last heartbeat
	Reservations   int
	CheckIsFailing bool // Consul's health check
}

// Book is safe for concurrent use.
type Book struct {
	timing Timing
	log    *slog.Logger
	now    func() time.Time
	began  time.Time

	mu       sync.Mutex // guards the rest
	fleet    *plan.Fleet
	rnd      *rand.Rand
	hosts    map[string]*host
	awaiting bool // SetCordoned has not been called and will be
	cordoned map[string]bool
	failing  map[string]time.Time // since when a host's health check fails, as far as is known
	byID     map[string]*reservation
	bySb     map[string]*reservation // by sandbox
	queue    queue
	changed  chan struct{} // closed when room may have come; nil while nobody waits
}

// host is one row of the fleet.
type host struct {
	row      int
	id       string
	reported plan.State // by its last heartbeat
	lost     cause      // why it is lost
	heard    time.Time
	beats    time.Time               // since when it is heard from without a break
	reserved map[string]*reservation // by sandbox
	// spread is the keys of sandboxes placed here that have one, by sandbox, from when the host showed them.
	spread map[string]string
}

// New makes an empty Book.
func New(c Config) *Book {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Seed == 0 {
		c.Seed = rand.Uint64()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Book{
		timing: c.Timing.WithDefaults(), log: c.Log, now: c.Now, began: c.Now(),
		fleet: plan.NewFleet(), rnd: rand.New(rand.NewPCG(c.Seed, c.Seed)), awaiting: c.AwaitCordons, hosts: map[string]*host{},
		byID: map[string]*reservation{}, bySb: map[string]*reservation{},
	}
}

// WarmUpLeft is how long hosts may exist that have not been heard from since the start.
func (b *Book) WarmUpLeft() time.Duration { return max(0, b.timing.WarmUp-b.now().Sub(b.began)) }

// Ready tells whether it is known which hosts are cordoned. Who places before may choose one that is.
func (b *Book) Ready() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.awaiting
}

// Changed is closed when room may have come since it was asked for.
func (b *Book) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.changed
}

// tell wakes who waits for room. mu is held.
func (b *Book) tell() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

// Beat takes over a host's account of itself and the sandboxes that hold room there, and returns the state that it has here. The
// book keeps h.
func (b *Book) Beat(h *plan.Host, sandboxes []string) plan.State {
	sorted(&h.CPUFeatures)
	sorted(&h.Snapshots)
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.hosts[h.ID]
	if e == nil {
		e = &host{id: h.ID, reserved: map[string]*reservation{}, spread: map[string]string{}}
		b.hosts[h.ID] = e
		b.log.Info("host heard from", "host_id", h.ID, "address", h.Address, "capacity", h.Capacity.String())
	}
	if b.pausing(e) {
		e.beats = b.now()
	}
	e.heard, e.reported = b.now(), h.State
	h.State = plan.Ready
	before := plan.Gone
	if row, known := b.fleet.View().Row(h.ID); known {
		before = b.fleet.View().State(row)
	}
	e.row = b.fleet.Put(h)
	state := b.judge(e, before)
	b.settle(e, sandboxes)
	b.tell()
	return state
}

func sorted(s *[]string) {
	if !slices.IsSorted(*s) {
		*s = slices.Sorted(slices.Values(*s))
	}
}

// settle ends the reservations of sandboxes that the host shows, and forgets the spread keys of those that it no longer has. mu is held.
func (b *Book) settle(e *host, sandboxes []string) {
	if len(e.reserved) == 0 && len(e.spread) == 0 {
		return
	}
	for _, id := range sandboxes {
		r := e.reserved[id]
		if r == nil {
			continue
		}
		// Its key goes on counting, as the sandbox is there now.
		if r.spreadKey != "" {
			e.spread[id] = r.spreadKey
			b.fleet.Count(e.row, r.spreadKey, 1)
		}
		b.end(r)
	}
	for id, key := range e.spread {
		if !slices.Contains(sandboxes, id) {
			delete(e.spread, id)
			b.fleet.Count(e.row, key, -1)
		}
	}
}

// cause is why a host is lost.
type cause uint8

// Causes.
const (
	notLost cause = iota
	silent
	failing
)

// judge decides a host's state and notes what is new about it. mu is held.
func (b *Book) judge(e *host, before plan.State) plan.State {
	state := plan.Ready
	lost := b.lost(e)
	switch {
	case lost != notLost:
		state = plan.Lost
	case e.reported == plan.Draining:
		state = plan.Draining
	case e.reported == plan.Cordoned || b.cordoned[e.id]:
		state = plan.Cordoned
	}
	if state != plan.Lost {
		b.fleet.SetState(e.row, state)
	} else if lost != e.lost || b.fleet.View().State(e.row) != plan.Lost {
		b.fleet.SetLost(e.row, b.sayLost(e, lost))
	}
	e.lost = lost
	if state != before && before != plan.Gone {
		_, fails := b.failing[e.id]
		b.log.Info("host changed", "host_id", e.id, "state", state.String(), "was", before.String(), "silent_for", b.now().Sub(e.heard), "check_failing", fails)
	}
	return state
}

// lost tells whether, and why, a host is lost. mu is held.
func (b *Book) lost(e *host) cause {
	since, fails := b.failing[e.id]
	if since.Before(e.beats) {
		since = e.beats // What failed before is of the time when it was away.
	}
	switch {
	case b.now().Sub(e.heard) > b.timing.Silence:
		return silent
	case fails && (b.pausing(e) || b.now().Sub(since) > b.timing.Silence):
		return failing
	}
	return notLost
}

// pausing tells whether a host has not been heard from for half of the time that loses it. mu is held.
func (b *Book) pausing(e *host) bool { return b.now().Sub(e.heard) > b.timing.Silence/2 }

// sayLost says why and since when a host is lost. mu is held.
func (b *Book) sayLost(e *host, c cause) string {
	heard := e.heard.UTC().Format(time.RFC3339)
	if c == silent {
		return "no heartbeat came from it since " + heard
	}
	return fmt.Sprintf("Consul's health check of it fails since %s, its last heartbeat came at %s", b.failing[e.id].UTC().Format(time.RFC3339), heard)
}

// rejudge decides all hosts' states anew. mu is held.
func (b *Book) rejudge() {
	for _, e := range b.hosts {
		b.judge(e, b.fleet.View().State(e.row))
	}
	b.tell()
}

// SetCordoned says which hosts are cordoned, known or not.
func (b *Book) SetCordoned(hosts map[string]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cordoned, b.awaiting = hosts, false
	b.rejudge()
}

// Cordon cordons one host, or lifts that.
func (b *Book) Cordon(id string, cordoned bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := map[string]bool{id: cordoned}
	for k, v := range b.cordoned {
		if k != id {
			now[k] = v
		}
	}
	b.cordoned = now
	b.rejudge()
}

// SetFailing says of which hosts the health check fails. That a host has no check says nothing.
func (b *Book) SetFailing(hosts map[string]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := map[string]time.Time{}
	for id, fails := range hosts {
		if !fails {
			continue
		}
		now[id] = b.now()
		if since, before := b.failing[id]; before {
			now[id] = since
		}
	}
	b.failing = now
	b.rejudge()
}

// Sweep ends reservations whose time is over, and finds the hosts that have fallen silent.
func (b *Book) Sweep() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	for id, e := range b.hosts {
		if b.now().Sub(e.heard) > b.timing.Silence+b.timing.Forget {
			for _, r := range e.reserved {
				b.end(r)
			}
			b.fleet.Remove(id)
			delete(b.hosts, id)
			b.log.Info("host forgotten", "host_id", id, "last_heard", e.heard)
		}
	}
	b.rejudge()
}

// Run sweeps until ctx ends.
func (b *Book) Run(ctx context.Context) {
	tick := time.NewTicker(max(b.timing.Silence/10, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.Sweep()
		case <-ctx.Done():
			return
		}
	}
}

// Hosts are all hosts, by id.
func (b *Book) Hosts() []Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	rows := b.fleet.View().Rows()
	list := make([]Status, len(rows))
	for i, row := range rows {
		list[i] = b.status(row)
	}
	return list
}

// Host finds one host.
func (b *Book) Host(id string) (Status, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	row, known := b.fleet.View().Row(id)
	if !known {
		return Status{}, false
	}
	return b.status(row), true
}

func (b *Book) status(row int) Status {
	s := Status{Host: b.fleet.View().Host(row)}
	e := b.hosts[s.ID]
	s.Used = s.Used.Plus(b.fleet.View().Held(row))
	s.Heard, s.Reservations = e.heard, len(e.reserved)
	_, s.CheckIsFailing = b.failing[s.ID]
	return s
}

// Explain says for every host why it would or would not take a sandbox.
func (b *Book) Explain(r *plan.Request) plan.Explanation {
	b.mu.Lock()
	b.expire()
	v := b.fleet.Freeze()
	b.mu.Unlock()
	return plan.Explain(v, r)
}
