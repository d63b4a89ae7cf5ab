package pager

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/pager/uffd"
)

const (
	// batch is how many messages are read at once, maxEvents how many sessions' events.
	batch     = 16
	maxEvents = 16
)

// poller waits for the faults of all sessions in a few threads; on a small machine it is one. Registered edge-triggered, a fault wakes one of
// them. More threads than needed do harm: the kernel wakes them in turn, and those that are blocked take processors from Go's
// scheduler, which takes them back with a thread of its own, all at the faults' expense (a quarter of the rate was left).
type poller struct {
	epoll, quit int
	wg          sync.WaitGroup
	last        atomic.Int64 // number given last

	mu       sync.RWMutex
	sessions map[int64]*Session // guarded by mu; by number
}

func newPoller(workers int) (*poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	quit, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	p := &poller{epoll: epoll, quit: quit, sessions: map[int64]*Session{}}
	// Number 0 is the quit event; it stays readable, so all workers see it.
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, quit, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		unix.Close(epoll)
		unix.Close(quit)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	for range workers {
		p.wg.Go(p.work)
	}
	return p, nil
}

// add makes the workers drain s whenever it has messages, from those that it has now. A number is never used twice, so an event
// that is late finds nobody, rather than who has the descriptor now.
func (p *poller) add(s *Session) error {
	number := p.last.Add(1)
	p.mu.Lock()
	p.sessions[number] = s
	s.number = number
	p.mu.Unlock()
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(number), Pad: int32(number >> 32)}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, s.uffd, &event); err != nil {
		p.forget(s)
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

// remove is called before the descriptor is closed: the VMM has another of the same, so closing alone takes nothing out of the set.
func (p *poller) remove(s *Session) {
	unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, s.uffd, nil)
	p.forget(s)
}

func (p *poller) forget(s *Session) {
	p.mu.Lock()
	delete(p.sessions, s.number)
	p.mu.Unlock()
}

func (p *poller) work() {
	events := make([]unix.EpollEvent, maxEvents)
	buf := make([]byte, batch*uffd.MessageSize)
	for {
		n, err := unix.EpollWait(p.epoll, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			panic(fmt.Sprintf("pager: epoll_wait: %v", err)) // EBADF, EINVAL: a defect in here
		}
		// The first is served here, at once. Where more than one VM faults at a time, the others are served beside it.
		for _, e := range events[1:max(n, 1)] {
			s, quit := p.find(e)
			if quit {
				return
			}
			if s != nil && s.gate.enter() {
				s.later(func() { s.drain(make([]byte, batch*uffd.MessageSize)) })
				s.gate.leave()
			}
		}
		s, quit := p.find(events[0])
		if quit {
			return
		}
		if s != nil {
			s.drain(buf)
		}
	}
}

// find returns the session that an event is for, nil if it is closed; quit if it is time to go.
func (p *poller) find(e unix.EpollEvent) (s *Session, quit bool) {
	number := int64(uint32(e.Fd)) | int64(e.Pad)<<32
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.sessions[number], number == 0
}

// close ends the workers. No session is served any more.
func (p *poller) close() {
	unix.Write(p.quit, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	p.wg.Wait()
	unix.Close(p.epoll)
	unix.Close(p.quit)
}
