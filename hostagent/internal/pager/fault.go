package pager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/pager/uffd"
)

const (
	// maxAhead is the most that faults one after the other bring in at once, in bytes.
	maxAhead = 512 << 10
	// zeroSpan is the aligned range around a fault within which zeros are mapped: they take no memory but a page table.
	zeroSpan = 512 << 10
)

// drain serves what messages there are. A worker calls it.
func (s *Session) drain(buf []byte) {
	if !s.gate.enter() {
		return
	}
	defer s.gate.leave()
	for {
		n, err := s.read(buf)
		if err != nil {
			s.fail(fmt.Errorf("read the userfaultfd: %w", err))
			return
		}
		began := time.Now()
		for i := range n {
			if m := uffd.Parse(buf, i); m.Event == uffd.Pagefault {
				s.fault(m.Start, began)
			}
		}
		if n*uffd.MessageSize < len(buf) {
			return
		}
	}
}

// read reads messages and notes what was removed. Both under the lock that copying holds: a discard waits until its message
// has been read, so what is copied before comes before it, and what is copied after knows of it.
func (s *Session) read(buf []byte) (int, error) {
	if s.private {
		return uffd.Read(s.uffd, buf)
	}
	s.removes.Lock()
	defer s.removes.Unlock()
	n, err := uffd.Read(s.uffd, buf)
	for i := range n {
		if m := uffd.Parse(buf, i); m.Event == uffd.Remove || m.Event == uffd.Unmap {
			s.noteRemoved(m.Start, m.End)
		}
	}
	return n, err
}

func (s *Session) noteRemoved(start, end uint64) {
	s.cache.tally.removed.Add(1)
	for i := range s.regions {
		r := &s.regions[i]
		from, to := max(start, r.Base), min(end, r.Base+r.Size)
		if from < to {
			s.removed.addRange(int64(r.Offset+from-r.Base)/PageSize, (int64(r.Offset+to-r.Base)+PageSize-1)/PageSize)
		}
	}
}

// fault serves one fault, or sees to it that it is served.
func (s *Session) fault(addr uint64, began time.Time) {
	s.faultOnce.Do(func() { close(s.faulted) })
	addr &^= PageSize - 1
	for i := range s.regions {
		if r := &s.regions[i]; addr >= r.Base && addr-r.Base < r.Size {
			s.serve(waiter{s: s, r: r, off: int64(r.Offset + addr - r.Base), began: began})
			return
		}
	}
	s.fail(fmt.Errorf("fault at address %#x, which is in no region of the handshake", addr))
}

func (s *Session) serve(w waiter) {
	f := s.img.file.pageFile
	if !s.private && s.isRemoved(w.off) {
		s.zero(w, w.off, w.off+PageSize)
		return
	}
	if f.filled.has(w.off / PageSize) {
		s.cached(w)
		return
	}
	length, zero, err := runOf(s.img.src, w.off)
	switch {
	case err != nil:
		s.fail(fmt.Errorf("memory of %s: %w", f.key, err))
	case zero:
		from, to := s.zerosAround(w, length)
		s.zero(w, from, to)
	default:
		s.demand(w)
	}
}

func (s *Session) cached(w waiter) {
	s.note(w.off)
	s.cache.tally.cached.Add(1)
	s.counts.add("cache", 1)
	s.resolve(w)
}

// demand has the fault's unit filled, and has more brought in beside where faults come one after the other: a fault waits for
// no more than its own unit.
func (s *Session) demand(w waiter) {
	s.note(w.off)
	f := s.img.file.pageFile
	fl, filled := f.join(w, s.starts())
	if filled {
		s.cached(w)
		return
	}
	s.cache.tally.filled.Add(1)
	switch {
	case fl == nil: // lands with who fills it
		s.counts.add("cache", 1)
	case isLocal(fl.src, fl.first*f.unit, min(f.unit, f.size-fl.first*f.unit)):
		fl.local = true
		s.cache.run(f, fl)
	default:
		s.later(func() { s.cache.run(f, fl) })
	}
	unit := w.off / f.unit
	if n := s.ahead(unit); n > 0 {
		s.bringAhead(unit+1, n)
	}
}

// starts is what every fill that this session starts begins with.
func (s *Session) starts() flight {
	return flight{src: s.img.src, ctx: s.ctx, counts: &s.counts}
}

// bringAhead fills units that nobody waits for yet.
func (s *Session) bringAhead(first, units int64) {
	f := s.img.file.pageFile
	if first*f.unit >= f.size {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flights[first] != nil || f.has(first) {
		return
	}
	fl := f.begin(first, units, s.starts())
	s.later(func() { s.cache.run(f, fl) })
}

// later runs fn in a goroutine, with the session kept open. The caller is inside the gate: what is begun is ended even while the
// session closes, because other sessions may wait for it.
func (s *Session) later(fn func()) {
	s.gate.again()
	s.cache.pool.submit(func() {
		defer s.gate.leave()
		fn()
	})
}

// ahead is how many units are to be brought in after the one that a fault is in: none, or twice as many as last time if the fault
// follows on what the last one brought in.
func (s *Session) ahead(unit int64) int64 {
	most := maxAhead / s.img.file.unit
	if s.img.file.unit == PageSize {
		return 0
	}
	s.aheadMu.Lock()
	defer s.aheadMu.Unlock()
	switch {
	case unit == s.aheadEnd:
		s.aheadUnits = min(max(2*s.aheadUnits, 1), most)
	case unit >= s.aheadEnd-s.aheadUnits && unit < s.aheadEnd:
		return 0 // it is on its way
	default:
		s.aheadUnits = 0
	}
	s.aheadEnd = unit + 1 + s.aheadUnits
	return s.aheadUnits
}

// landed is called when a fill that w waits for has ended.
func (s *Session) landed(w waiter, fl *flight, err error) {
	if !s.gate.enter() {
		return
	}
	defer s.gate.leave()
	f := s.img.file.pageFile
	switch {
	case f.filled.has(w.off / PageSize):
		s.resolve(w)
	case err == nil:
		s.serve(w) // a run that was data when asked first was zeros then
	case fl.ctx.Err() != nil:
		s.later(func() { s.serve(w) }) // who filled it has gone; this session reads for itself
	case errors.Is(err, context.DeadlineExceeded) && fl.last-fl.first == 1:
		s.fail(fmt.Errorf("memory of %s at offset %#x: the source has not answered in %v: %w", f.key, w.off, s.cache.conf.ReadTime, err))
	default:
		s.alone(w)
	}
}

// alone reads one page for one session, after a fill has failed: the neighbours that a fault brings in must fail nobody.
func (s *Session) alone(w waiter) {
	ctx, cancel := context.WithTimeout(s.ctx, s.cache.conf.ReadTime)
	defer cancel()
	f := s.img.file.pageFile
	if err := f.bring(ctx, &flight{src: s.img.src, counts: &s.counts}, w.off, PageSize); err != nil {
		s.fail(err)
		return
	}
	s.resolve(w)
}

// resolve lets a thread go on whose page the file has.
func (s *Session) resolve(w waiter) {
	unit := s.img.file.unit
	from := max(w.off-w.off%unit, int64(w.r.Offset))
	to := min(w.off-w.off%unit+unit, int64(w.r.Offset+w.r.Size))
	if !s.private {
		s.copyIn(w, from, to)
		return
	}
	if err := uffd.Wake(s.uffd, w.r.addr(from), uint64(to-from)); err != nil {
		s.fail(fmt.Errorf("UFFDIO_WAKE: %w", err))
		return
	}
	s.cache.tally.latency.observe(time.Since(w.began))
}

// copyIn copies the page and its neighbours that the file has, from the fault on and then those before it.
func (s *Session) copyIn(w waiter, from, to int64) {
	view, err := s.img.file.view()
	if err != nil {
		s.fail(err)
		return
	}
	s.removes.RLock()
	if s.isRemoved(w.off) {
		s.removes.RUnlock()
		s.zero(w, w.off, w.off+PageSize)
		return
	}
	usable := func(off int64) bool { return s.img.file.filled.has(off/PageSize) && !s.isRemoved(off) }
	end := w.off + PageSize
	for end < to && usable(end) {
		end += PageSize
	}
	start := w.off
	for start > from && usable(start-PageSize) {
		start -= PageSize
	}
	op := func(addr uint64, off, n int64) (int64, error) { return uffd.Copy(s.uffd, addr, view[off:off+n]) }
	err = s.place(w.r, w.off, end, op)
	if err == nil {
		err = s.place(w.r, start, w.off, op)
	}
	s.removes.RUnlock()
	s.placed(w, "UFFDIO_COPY", err)
}

// zerosAround is the range of zeros around a fault that is mapped at once; its run goes on for length from the fault.
func (s *Session) zerosAround(w waiter, length int64) (from, to int64) {
	if s.cache.conf.Around == PageSize {
		return w.off, w.off + PageSize
	}
	low := max(w.off-w.off%zeroSpan, int64(w.r.Offset))
	to = min(w.off+length, w.off-w.off%zeroSpan+zeroSpan, int64(w.r.Offset+w.r.Size))
	for from = low; from < w.off; {
		n, zero, err := runOf(s.img.src, from)
		if err != nil {
			return w.off, to
		}
		if zero && from+n >= w.off {
			return from, to
		}
		from += n
	}
	return w.off, to
}

// zero maps zeros into a range that has the fault in it.
func (s *Session) zero(w waiter, from, to int64) {
	var pages int64
	err := s.place(w.r, from, to, func(addr uint64, _, n int64) (int64, error) {
		n, err := uffd.Zero(s.uffd, addr, uint64(n))
		pages += n / PageSize
		return n, err
	})
	s.cache.tally.zero.Add(1)
	s.counts.add("zero", pages)
	s.placed(w, "UFFDIO_ZEROPAGE", err)
}

// place runs op over a range of a region, past pages that are there already, and wakes who waits for those.
func (s *Session) place(r *Region, off, end int64, op func(addr uint64, off, n int64) (int64, error)) error {
	for off < end {
		n, err := op(r.addr(off), off, end-off)
		off += n
		switch {
		case err == nil || n > 0: // after some progress, the next try says what stopped it
		case uffd.Exists(err):
			if err := uffd.Wake(s.uffd, r.addr(off), PageSize); err != nil {
				return err
			}
			off += PageSize
		default:
			return err
		}
	}
	return nil
}

// placed ends a fault that pages were placed for.
func (s *Session) placed(w waiter, what string, err error) {
	switch {
	case err == nil:
		s.cache.tally.latency.observe(time.Since(w.began))
	case uffd.Gone(err): // the VMM ends or has unmapped it: nobody waits
	case uffd.Changing(err):
		s.retry(w)
	default:
		s.fail(fmt.Errorf("%s at offset %#x: %w", what, w.off, err))
	}
}

// retry serves a fault again in a moment: the mapping is being changed, which ends when some message has been read.
func (s *Session) retry(w waiter) {
	if !s.gate.enter() {
		return
	}
	s.cache.tally.retried.Add(1)
	w.tries++
	time.AfterFunc(min(50*time.Microsecond<<min(w.tries, 10), 10*time.Millisecond), func() {
		defer s.gate.leave()
		s.later(func() { s.serve(w) })
	})
}
