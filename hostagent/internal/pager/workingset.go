package pager

// maxWorkingSet is how many blocks a working set may have: 32 MiB. More is no longer what a start needs, and would delay it.
const maxWorkingSet = 512

// note records that a fault needed the block at off.
func (s *Session) note(off int64) {
	block := off / blockSize
	if s.seen.has(block) || !s.seen.add(block) {
		return
	}
	s.orderMu.Lock()
	defer s.orderMu.Unlock()
	if len(s.order) < maxWorkingSet {
		s.order = append(s.order, block*blockSize)
	}
}

// WorkingSet lists the blocks that the VM has needed, as offsets into the image: in order of first fault, then those that it got from
// the page cache without a fault, as long as its process is there to be asked. At most 32 MiB.
func (s *Session) WorkingSet() []int64 {
	s.orderMu.Lock()
	set := append([]int64(nil), s.order...)
	s.orderMu.Unlock()
	if !s.gate.enter() {
		return set
	}
	defer s.gate.leave()
	select {
	case <-s.connected:
	default:
		return set
	}
	in := map[int64]bool{}
	for _, off := range set {
		in[off] = true
	}
	for i := range s.regions {
		r := &s.regions[i]
		// Pages that are mapped, but for those of zeros. A process that has ended has none, which is no error.
		_ = scan(s.pid, r.Base, r.Size, query{invert: pageZero, all: pageZero | pagePresent}, func(off, length int64) error {
			off += int64(r.Offset)
			for b := off - off%blockSize; b < off+length && len(set) < maxWorkingSet; b += blockSize {
				if !in[b] {
					in[b] = true
					set = append(set, b)
				}
			}
			return nil
		})
	}
	return set
}
