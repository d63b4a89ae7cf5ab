package transfer

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Pauses between tries of one upload.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = 30 * time.Second
	// Those of uploads that the registry refuses for a reason that may go away, like a quota or another release.
	firstRefused = time.Second
	lastRefused  = 5 * time.Minute
	// Those of what is damaged here and whole nowhere else, as far as others could be asked.
	firstDamaged = time.Minute
	lastDamaged  = time.Hour
)

// queue holds the snapshots that are on their way into the registry.
type queue struct {
	wake chan struct{} // gets a value when next may have changed; holds at most one

	mu    sync.Mutex // guards items and what is in them
	items map[string]*item
}

type item struct {
	// registered: the registry knows of it and keeps what it names.
	registered bool
	running    bool
	// tries is how often it was tried, refusals how often the registry has refused it since it was last out of reach or took it.
	tries, refusals int
	// damage is what makes it useless to send it; nil where none is known. looks is how often it was found.
	damage *damage
	looks  int
	// notBefore is when it is to be tried again.
	notBefore time.Time
}

func newQueue() *queue {
	return &queue{wake: make(chan struct{}, 1), items: map[string]*item{}}
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// add puts a snapshot in, to be tried at once.
func (q *queue) add(id string, registered bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := q.items[id]
	if i == nil {
		i = &item{}
		q.items[id] = i
	}
	i.registered = i.registered || registered
	i.notBefore = time.Time{}
	q.signal()
}

// take gives out a snapshot that is due, or says how long none will be; a negative time means until one is added.
func (q *queue) take() (id string, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wait = -1
	for k, i := range q.items {
		if i.running {
			continue
		}
		d := max(0, time.Until(i.notBefore))
		if wait < 0 || d < wait {
			id, wait = k, d
		}
	}
	if wait != 0 {
		return "", wait
	}
	q.items[id].running = true
	return id, 0
}

// registered notes that the registry knows of a snapshot.
func (q *queue) registered(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := q.items[id]; i != nil {
		i.registered = true
	}
}

// remove takes a snapshot out.
func (q *queue) remove(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.items, id)
	q.signal()
}

// later puts a snapshot that was taken back, to be tried again after a pause that grows.
func (q *queue) later(id string) time.Duration {
	return q.again(id, func(i *item) time.Duration {
		i.refusals, i.damage, i.looks = 0, nil, 0
		return min(lastPause, firstPause<<min(i.tries, 10))
	})
}

// refused is later for one that the registry refuses.
func (q *queue) refused(id string) time.Duration {
	return q.again(id, func(i *item) time.Duration {
		i.refusals++
		return min(lastRefused, firstRefused<<min(i.refusals-1, 10))
	})
}

// damaged is later for one that is damaged here, and tells whether that was known.
func (q *queue) damaged(id string, d *damage) (pause time.Duration, known bool) {
	pause = q.again(id, func(i *item) time.Duration {
		known = i.damage != nil
		i.damage = d
		i.looks++
		return min(lastDamaged, firstDamaged<<min(i.looks-1, 10))
	})
	return pause, known
}

func (q *queue) damageOf(id string) *damage {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := q.items[id]; i != nil {
		return i.damage
	}
	return nil
}

func (q *queue) again(id string, after func(*item) time.Duration) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := q.items[id]
	if i == nil {
		return 0
	}
	pause := after(i)
	pause = pause/2 + rand.N(pause/2)
	i.tries++
	i.running, i.notBefore = false, time.Now().Add(pause)
	q.signal()
	return pause
}

func (q *queue) has(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.items[id] != nil
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

// lenRefused counts those that the registry refused when they were last tried.
func (q *queue) lenRefused() int { return q.count(func(i *item) bool { return i.refusals > 0 }) }

// lenDamaged counts those that are damaged here.
func (q *queue) lenDamaged() int { return q.count(func(i *item) bool { return i.damage != nil }) }

func (q *queue) count(is func(*item) bool) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, i := range q.items {
		if is(i) {
			n++
		}
	}
	return n
}

// allRegistered tells whether the registry keeps what all of them name.
func (q *queue) allRegistered() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, i := range q.items {
		if !i.registered {
			return false
		}
	}
	return true
}
