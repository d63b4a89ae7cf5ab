package book

import (
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/coveyhq/covey/scheduler/plan"
)

// Placement is room held on a host.
type Placement struct {
	HostID, Address, ReservationID string
	// Decision says why it is this host.
	Decision plan.Decision
}

type reservation struct {
	id, sandbox string
	host        *host
	resources   plan.Resources
	spreadKey   string
	expires     time.Time
	ended       bool
}

// Place chooses a host and holds the room there; an earlier reservation of the sandbox ends. Where no host fits it returns a
// *plan.NoHostError.
func (b *Book) Place(r *plan.Request) (Placement, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	if old := b.bySb[r.SandboxID]; old != nil {
		b.end(old)
	}
	v := b.fleet.View()
	d, ok := plan.Choose(v, r, b.rnd)
	if !ok {
		return Placement{}, plan.Refuse(v, r)
	}
	held := &reservation{
		id: "res_" + ulid.Make().String(), sandbox: r.SandboxID, host: b.hosts[v.ID(d.Row)], resources: r.Resources, spreadKey: r.SpreadKey,
		expires: b.now().Add(b.timing.Reservation),
	}
	b.fleet.Reserve(d.Row, r.Resources, r.SpreadKey)
	held.host.reserved[r.SandboxID] = held
	b.byID[held.id], b.bySb[r.SandboxID] = held, held
	b.queue.push(held)
	return Placement{HostID: held.host.id, Address: v.Address(d.Row), ReservationID: held.id, Decision: d}, nil
}

// Release gives reserved room back; false where there is no such reservation: it has ended, or another scheduler made it.
func (b *Book) Release(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.byID[id]
	if r != nil {
		b.end(r)
		b.tell()
	}
	return r != nil
}

// end ends a reservation. mu is held.
func (b *Book) end(r *reservation) {
	r.ended = true
	delete(b.byID, r.id)
	delete(b.bySb, r.sandbox)
	delete(r.host.reserved, r.sandbox)
	b.fleet.Release(r.host.row, r.resources, r.spreadKey)
}

// expire ends the reservations whose time is over. mu is held.
func (b *Book) expire() {
	now := b.now()
	for r := b.queue.first(); r != nil && (r.ended || !now.Before(r.expires)); r = b.queue.first() {
		b.queue.pop()
		if !r.ended {
			b.log.Info("reservation expired", "reservation_id", r.id, "sandbox_id", r.sandbox, "host_id", r.host.id)
			b.end(r)
		}
	}
}

// queue has reservations in the order of their ends, which is that of their beginnings.
type queue struct {
	items []*reservation
	head  int
}

func (q *queue) push(r *reservation) {
	if q.head > 1024 && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, r)
}

func (q *queue) first() *reservation {
	if q.head == len(q.items) {
		return nil
	}
	return q.items[q.head]
}

func (q *queue) pop() {
	q.items[q.head] = nil
	q.head++
}
