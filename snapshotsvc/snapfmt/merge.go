package snapfmt

import "math"

// Change maps a range of the space anew. All numbers are in bytes and multiples of the block size.
type Change struct {
	Off, Len int64
	// Build that has the range from now on, and where in it; the zero ID means zeros, whose Offset is 0.
	Build  ID
	Offset int64
}

// Merge makes the header of the next generation: h with the changes applied, which ascend and do not overlap. build is the id
// of the new generation's data, zero if it has none. Builds that nothing names any more are left out.
func (h *Header) Merge(build ID, changes []Change) (*Header, error) {
	if h.Generation == math.MaxUint32 {
		return nil, invalid("generation %d has no next", h.Generation)
	}
	next, err := h.Remap(changes)
	if err != nil {
		return nil, err
	}
	next.Generation, next.Build, next.Parent = h.Generation+1, build, h.Build
	return next, nil
}

// Remap applies changes as Merge does and leaves the header in its generation: the same content, found elsewhere.
func (h *Header) Remap(changes []Change) (*Header, error) {
	if err := h.checkChanges(changes); err != nil {
		return nil, err
	}
	m := merger{header: h, index: map[ID]uint32{}}
	for i, id := range h.Builds {
		m.index[id] = uint32(i + 1)
	}
	m.builds = append(m.builds, h.Builds...)
	at, block := uint32(0), h.BlockSize
	for _, c := range changes {
		start := uint32(c.Off / block)
		m.keep(at, start)
		r := Run{Start: start, Len: uint32(c.Len / block), Build: m.number(c.Build), Offset: uint32(c.Offset / block)}
		m.add(r)
		at = start + r.Len
	}
	m.keep(at, h.blocks())
	next := *h
	next.Builds, next.Runs = m.compact()
	return next.valid()
}

func (h *Header) checkChanges(changes []Change) error {
	end := int64(0)
	for i, c := range changes {
		switch {
		case c.Off%h.BlockSize != 0 || c.Len%h.BlockSize != 0 || c.Offset%h.BlockSize != 0:
			return invalid("change %d: offset %d, length %d and build offset %d must be multiples of the block size %d", i, c.Off, c.Len, c.Offset, h.BlockSize)
		case c.Off < end:
			return invalid("change %d begins at %d; it must not begin before %d, where the one before ends", i, c.Off, end)
		case c.Len <= 0 || c.Off > h.Size || c.Len > h.Size-c.Off:
			return invalid("change %d: %d bytes at %d are not within the space of %d", i, c.Len, c.Off, h.Size)
		case c.Build == ID{} && c.Offset != 0:
			return invalid("change %d is zeros and has build offset %d; it must be 0", i, c.Offset)
		case c.Offset < 0 || c.Offset > math.MaxInt64-c.Len || (c.Offset+c.Len)/h.BlockSize > math.MaxUint32:
			return invalid("change %d: build offset %d is not below 2^32 blocks", i, c.Offset)
		}
		end = c.Off + c.Len
	}
	return nil
}

// merger collects the runs of a new header.
type merger struct {
	header *Header
	next   int // run of the header from which to look on
	builds []ID
	index  map[ID]uint32 // number of a build, as in Run.Build
	runs   []Run
}

func (m *merger) number(id ID) uint32 {
	if id == (ID{}) {
		return 0
	}
	n, ok := m.index[id]
	if !ok {
		m.builds = append(m.builds, id)
		n = uint32(len(m.builds))
		m.index[id] = n
	}
	return n
}

// add appends a run, as part of the last one if it goes on there.
func (m *merger) add(r Run) {
	if n := len(m.runs); n > 0 && m.runs[n-1].goesOn(r) {
		m.runs[n-1].Len += r.Len
		return
	}
	m.runs = append(m.runs, r)
}

// keep takes over the blocks from start to end of the old header. Calls ascend.
func (m *merger) keep(start, end uint32) {
	old := m.header.Runs
	for start < end {
		for old[m.next].Start+(old[m.next].Len-1) < start {
			m.next++
		}
		r := old[m.next]
		skip := start - r.Start
		part := Run{Start: start, Len: min(r.Len-skip, end-start), Build: r.Build}
		if r.Build != 0 {
			part.Offset = r.Offset + skip
		}
		m.add(part)
		start += part.Len
	}
}

// compact leaves out builds that no run names.
func (m *merger) compact() (builds []ID, runs []Run) {
	named := make([]bool, len(m.builds)+1)
	for _, r := range m.runs {
		named[r.Build] = true
	}
	number := make([]uint32, len(m.builds)+1)
	for i, id := range m.builds {
		if named[i+1] {
			builds = append(builds, id)
			number[i+1] = uint32(len(builds))
		}
	}
	for i := range m.runs {
		m.runs[i].Build = number[m.runs[i].Build]
	}
	return builds, m.runs
}

// Grow makes the space larger, by zeros at its end. It may stay as large as it is, but not become smaller.
func (h *Header) Grow(size int64) (*Header, error) {
	next := *h
	next.Size = size
	if err := next.checkSizes(); err != nil {
		return nil, err
	}
	if size < h.Size {
		return nil, invalid("a space of %d bytes cannot become one of %d", h.Size, size)
	}
	m := merger{header: h, runs: append([]Run(nil), h.Runs...)}
	if more := next.blocks() - h.blocks(); more > 0 {
		m.add(Run{Start: h.blocks(), Len: more})
	}
	next.Runs = m.runs
	return next.valid()
}
