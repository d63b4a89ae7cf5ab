package disk

import (
	"slices"
	"sync"
)

// blockLocks makes writers of the same blocks wait for each other, in the order in which they came.
//
// Chosen: a list in order of arrival, because few requests are in flight, and so a large request is not starved by small ones.
// Rejected: striped mutexes (a request of many blocks takes hundreds of them).
type blockLocks struct {
	mu   sync.Mutex // guards list
	gone sync.Cond  // a span has left the list
	list []*span
}

// span is blocks [from, to), locked or waited for.
type span struct{ from, to int64 }

func newBlockLocks() *blockLocks {
	l := &blockLocks{}
	l.gone.L = &l.mu
	return l
}

// lock locks blocks [from, to) and returns the unlocking.
func (l *blockLocks) lock(from, to int64) (unlock func()) {
	s := &span{from, to}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, s)
	for l.blocked(s) {
		l.gone.Wait()
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.list = slices.DeleteFunc(l.list, func(o *span) bool { return o == s })
		l.gone.Broadcast()
	}
}

// blocked tells whether one that came before s overlaps it.
func (l *blockLocks) blocked(s *span) bool {
	for _, o := range l.list {
		if o == s {
			return false
		}
		if o.from < s.to && s.from < o.to {
			return true
		}
	}
	return false
}
