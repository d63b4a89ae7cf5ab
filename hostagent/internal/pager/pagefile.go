package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pageFile is the page cache of one snapshot's memory: a sparse file, in which a page is either a hole or what the source has.
// A write of whole pages into tmpfs appears page by page, each whole, so clones may map the file while it is filled.
type pageFile struct {
	key  string
	path string
	size int64
	unit int64 // bytes of a fill that no neighbour asked for
	// rw is the pager's; ro is what VMMs map. Of two, because a mapping by one that may write is one that can be made shared.
	rw, ro *os.File
	fd     int // rw's

	filled *bitmap      // pages that the file has
	pages  atomic.Int64 // how many those are
	total  *atomic.Int64

	mu      sync.Mutex
	flights map[int64]*flight // guarded by mu; by unit
	mapping []byte            // guarded by mu; the file, to copy from; made when first needed
}

// flight is a fill under way, of the units [first, last). Whoever started it runs it; others wait.
type flight struct {
	first, last int64
	src         Source
	local       bool            // src answers at once
	ctx         context.Context // the starter's
	counts      *sourceCounts   // the starter's
	waiters     []waiter        // guarded by pageFile.mu
}

// waiter is a fault that waits: session s needs the page at off of the image, where region r has it.
type waiter struct {
	s     *Session
	r     *Region
	off   int64
	began time.Time
	tries int
}

// openPageFile opens or makes the file at path; an existing one counts as filled where it has data.
func openPageFile(path, key string, size, unit int64, total *atomic.Int64) (*pageFile, error) {
	rw, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	f := &pageFile{
		key: key, path: path, size: size, unit: unit, rw: rw, fd: int(rw.Fd()), filled: newBitmap(size / PageSize), total: total, flights: map[int64]*flight{},
	}
	if f.ro, err = os.Open(path); err == nil {
		err = f.adopt()
	}
	if err != nil {
		f.close()
		return nil, fmt.Errorf("page-cache file of %s: %w", key, err)
	}
	return f, nil
}

// adopt finds out what the file has.
func (f *pageFile) adopt() error {
	st, err := f.rw.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 {
		return f.rw.Truncate(f.size)
	}
	if st.Size() != f.size {
		return fmt.Errorf("is of %d bytes, not %d", st.Size(), f.size)
	}
	for off := int64(0); off < f.size; {
		data, err := unix.Seek(f.fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		if off, err = unix.Seek(f.fd, data, unix.SEEK_HOLE); err != nil {
			return err
		}
		f.added(f.filled.addRange(data/PageSize, (off+PageSize-1)/PageSize))
	}
	return nil
}

func (f *pageFile) added(pages int64) {
	f.pages.Add(pages)
	f.total.Add(pages * PageSize)
}

// close lets go of the file; it stays where it is, and so do VMs' mappings of it.
func (f *pageFile) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total.Add(-f.pages.Swap(0) * PageSize)
	if f.mapping != nil {
		unix.Munmap(f.mapping)
		f.mapping = nil
	}
	f.rw.Close()
	if f.ro != nil {
		f.ro.Close()
	}
}

// strayed tells whether the file has pages that the pager did not put there: some VMM touched holes past its userfaultfd.
func (f *pageFile) strayed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	var st unix.Stat_t
	if len(f.flights) > 0 || unix.Fstat(f.fd, &st) != nil {
		return false // a fill writes first and counts then
	}
	return st.Blocks*512 > f.pages.Load()*PageSize
}

// view is the file as memory, to copy from.
func (f *pageFile) view() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mapping == nil {
		m, err := unix.Mmap(int(f.ro.Fd()), 0, int(f.size), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("map the page-cache file of %s: %w", f.key, err)
		}
		f.mapping = m
	}
	return f.mapping, nil
}

// join makes w wait for the fill of its unit. If none is under way it returns a new one, which the caller has to run; with filled
// true the page is there already, and nobody waits.
func (f *pageFile) join(w waiter, start flight) (mine *flight, filled bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.filled.has(w.off / PageSize) {
		return nil, true
	}
	if fl := f.flights[w.off/f.unit]; fl != nil {
		fl.waiters = append(fl.waiters, w)
		return nil, false
	}
	mine = f.begin(w.off/f.unit, 1, start)
	mine.waiters = append(mine.waiters, w)
	return mine, false
}

// begin starts a fill at unit first, of which none is under way, up to the next that is or that has been filled. mu is held.
func (f *pageFile) begin(first, units int64, start flight) *flight {
	fl := &start
	fl.first, fl.last = first, first+1
	f.flights[first] = fl
	for n := first + 1; n < first+units && n*f.unit < f.size && f.flights[n] == nil && !f.filled.has(n*f.unit/PageSize); n++ {
		f.flights[n] = fl
		fl.last = n + 1
	}
	return fl
}

// end takes the fill off the list and returns who waits for it.
func (f *pageFile) end(fl *flight) []waiter {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := fl.first; n < fl.last; n++ {
		delete(f.flights, n)
	}
	return fl.waiters
}

// fill brings in what the file lacks of the fill's range. Zeros stay holes.
func (f *pageFile) fill(ctx context.Context, fl *flight) error {
	for off, end := fl.first*f.unit, min(fl.last*f.unit, f.size); off < end; {
		has, next := f.filled.run(off/PageSize, end/PageSize)
		if has {
			off = next * PageSize
			continue
		}
		length, zero, err := runOf(fl.src, off)
		if err != nil {
			return err
		}
		length = min(length, next*PageSize-off)
		if !zero {
			if err := f.bring(ctx, fl, off, length); err != nil {
				return err
			}
		}
		off += length
	}
	return nil
}

// runOf asks for a run and distrusts the answer.
func runOf(src Source, off int64) (length int64, zero bool, err error) {
	length, zero = src.Run(off)
	if length <= 0 || length%PageSize != 0 || length > src.Size()-off {
		return 0, false, fmt.Errorf("source says that its run at offset %#x is of %d bytes", off, length)
	}
	return length, zero, nil
}

// maxBring is the most that is read at once, in bytes.
const maxBring = 512 << 10

var buffers = sync.Pool{New: func() any { return new([maxBring]byte) }}

// bring reads a range and writes it into the file.
func (f *pageFile) bring(ctx context.Context, fl *flight, off, length int64) error {
	buf := buffers.Get().(*[maxBring]byte)
	defer buffers.Put(buf)
	for length > 0 {
		p := buf[:min(length, maxBring)]
		from, err := fl.src.ReadAt(ctx, p, off)
		if err != nil {
			return fmt.Errorf("memory of %s at offset %#x: %w", f.key, off, err)
		}
		if err := f.put(p, off); err != nil {
			return err
		}
		fl.counts.add(from, int64(len(p))/PageSize)
		off += int64(len(p))
		length -= int64(len(p))
	}
	return nil
}

// put writes whole pages into the file. Only then they count as filled.
func (f *pageFile) put(p []byte, off int64) error {
	for at := off; len(p) > 0; {
		n, err := unix.Pwrite(f.fd, p, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n%PageSize != 0 {
			err = unix.ENOSPC
		}
		if err != nil {
			return fmt.Errorf("page-cache file of %s at offset %#x: %w", f.key, at, err)
		}
		f.added(f.filled.addRange(at/PageSize, (at+int64(n))/PageSize))
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// punch makes a page a hole again.
func (f *pageFile) punch(off int64) error {
	if !f.filled.remove(off / PageSize) {
		return nil
	}
	f.added(-1)
	return unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, PageSize)
}
