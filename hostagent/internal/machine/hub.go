package machine

import "sync"

// Event is a sandbox after a change, or with Resync set the news that changes were missed.
type Event struct {
	Status Status
	// Resync: this subscriber was too slow and must read the whole list again.
	Resync bool
}

// hub hands every change to every subscriber without ever waiting for one.
type hub struct {
	mu   sync.Mutex // guards subs and orders what is sent
	subs map[*Subscription]struct{}
}

// Subscription receives changes until it is closed.
type Subscription struct {
	hub    *hub
	events chan Event
	// missed is guarded by hub.mu: the buffer was full, and Resync is owed.
	missed bool
}

func newHub() *hub { return &hub{subs: map[*Subscription]struct{}{}} }

func (h *hub) subscribe(buffer int) *Subscription {
	s := &Subscription{hub: h, events: make(chan Event, buffer)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subs[s] = struct{}{}
	return s
}

func (h *hub) publish(st Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.offer(Event{Status: st})
	}
}

// offer puts an event into the buffer. When it is full the event is dropped, and the last place is kept for the news of that.
func (s *Subscription) offer(e Event) {
	if s.missed {
		return
	}
	if len(s.events) == cap(s.events)-1 {
		s.missed = true
		e = Event{Resync: true}
	}
	s.events <- e
}

// Events is the channel of changes; it is never closed.
func (s *Subscription) Events() <-chan Event { return s.events }

// Resynced tells that the subscriber has seen Resync and is about to read the whole list.
func (s *Subscription) Resynced() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.missed = false
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.subs, s)
}
