package pager

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FindMapping lists where a process maps a file privately, in order of addresses; neighbours that go on from one another are joined.
func FindMapping(pid int, file *os.File) ([]Region, error) {
	var want unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &want); err != nil {
		return nil, err
	}
	device := fmt.Sprintf("%02x:%02x", unix.Major(want.Dev), unix.Minor(want.Dev))
	inode := strconv.FormatUint(want.Ino, 10)
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	var found []Region
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		// address range, permissions, offset, device, inode, path
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || fields[3] != device || fields[4] != inode || !strings.HasSuffix(fields[1], "p") {
			continue
		}
		r, err := parseMapping(fields[0], fields[2])
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		if n := len(found); n > 0 && found[n-1].Base+found[n-1].Size == r.Base && found[n-1].Offset+found[n-1].Size == r.Offset {
			found[n-1].Size += r.Size
			continue
		}
		found = append(found, r)
	}
	return found, lines.Err()
}

func parseMapping(addresses, offset string) (Region, error) {
	from, to, _ := strings.Cut(addresses, "-")
	start, err := strconv.ParseUint(from, 16, 64)
	if err != nil {
		return Region{}, err
	}
	end, err := strconv.ParseUint(to, 16, 64)
	if err != nil {
		return Region{}, err
	}
	off, err := strconv.ParseUint(offset, 16, 64)
	return Region{Base: start, Size: end - start, Offset: off, PageSize: PageSize, PageSizeKiB: PageSize}, err
}

// Categories of linux/fs.h's PAGEMAP_SCAN.
const (
	pageOfFile  = 1 << 2
	pagePresent = 1 << 3
	pageSwapped = 1 << 4
	pageZero    = 1 << 5

	ioctlPagemapScan = 0xc0606610
)

// DirtyPages lists the pages of a private mapping that the process has written: it calls fn with ranges of [addr, addr+size), as offsets
// from addr, ascending, page-aligned, not overlapping. addr and size are multiples of PageSize. They are the private anonymous
// pages. Pages of the file, and the kernel's page of zeros, which the pager maps where the image has zeros, are not among
// them. The process must not be writing meanwhile. It needs CAP_SYS_ADMIN before Linux 6.7.
func DirtyPages(pid int, addr, size uint64, fn func(off, length int64) error) error {
	return scan(pid, addr, size, dirty, fn)
}

// query says which pages a scan is for: all of some categories, after inverting, and one at least of others.
type query struct{ invert, all, some uint64 }

// dirty pages are there, and neither the file's nor the page of zeros.
var dirty = query{invert: pageOfFile | pageZero, all: pageOfFile | pageZero, some: pagePresent | pageSwapped}

// wants decides as the kernel's scan does.
func (q query) wants(categories uint64) bool {
	categories ^= q.invert
	return categories&q.all == q.all && (q.some == 0 || categories&q.some != 0)
}

func scan(pid int, addr, size uint64, q query, fn func(off, length int64) error) error {
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer pagemap.Close()
	err = scanFast(pagemap, addr, size, q, fn)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		return scanSlowly(pagemap, addr, size, q, fn) // before Linux 6.7
	}
	return err
}

// foundRegions is a variable because an array of constant size may be put on the stack.
var foundRegions = 512

// scanFast uses PAGEMAP_SCAN, which skips what is not mapped.
func scanFast(pagemap *os.File, addr, size uint64, q query, fn func(off, length int64) error) error {
	type region struct{ start, end, categories uint64 }
	// The kernel is given its address as a number: it must not lie on the stack, which moves when it grows.
	found := make([]region, foundRegions)
	arg := struct {
		size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
		inverted, mask, anyOf, returned                         uint64
	}{
		size: 96, start: addr, end: addr + size, vec: uint64(uintptr(unsafe.Pointer(&found[0]))), vecLen: uint64(len(found)),
		inverted: q.invert, mask: q.all, anyOf: q.some, returned: pagePresent,
	}
	j := joiner{addr: addr, fn: fn}
	for arg.start < arg.end {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), ioctlPagemapScan, uintptr(unsafe.Pointer(&arg)))
		if errno != 0 {
			return errno
		}
		for _, r := range found[:n] {
			if err := j.add(r.start, r.end); err != nil {
				return err
			}
		}
		arg.start = arg.walkEnd
	}
	return j.flush()
}

// Bits of a pagemap entry; see the kernel's admin-guide/mm/pagemap.
const (
	entryPresent = 1 << 63
	entrySwapped = 1 << 62
	entryFile    = 1 << 61
	entryFrame   = 1<<55 - 1
)

// scanSlowly reads the entry of every page.
func scanSlowly(pagemap *os.File, addr, size uint64, q query, fn func(off, length int64) error) error {
	zeroFrame, err := frameOfZeros()
	if err != nil {
		return err
	}
	j := joiner{addr: addr, fn: fn}
	buf := make([]byte, 64<<10)
	for at, end := addr, addr+size; at < end; {
		p := buf[:min(uint64(len(buf)), (end-at)/PageSize*8)]
		if _, err := pagemap.ReadAt(p, int64(at/PageSize*8)); err != nil {
			return err
		}
		for ; len(p) > 0; p, at = p[8:], at+PageSize {
			if !q.wants(categoriesOf(binary.NativeEndian.Uint64(p), zeroFrame)) {
				continue
			}
			if err := j.add(at, at+PageSize); err != nil {
				return err
			}
		}
	}
	return j.flush()
}

func categoriesOf(entry, zeroFrame uint64) (c uint64) {
	if entry&entryFile != 0 {
		c |= pageOfFile
	}
	if entry&entrySwapped != 0 {
		c |= pageSwapped
	}
	if entry&entryPresent != 0 {
		c |= pagePresent
		if entry&entryFrame == zeroFrame {
			c |= pageZero
		}
	}
	return c
}

// frameOfZeros finds the frame number of the kernel's page of zeros: what an anonymous page is that has only been read.
func frameOfZeros() (uint64, error) {
	m, err := unix.Mmap(-1, 0, PageSize, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(m)
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0, err
	}
	defer pagemap.Close()
	var entry [8]byte
	if _, err := pagemap.ReadAt(entry[:], int64(uintptr(unsafe.Pointer(&m[0]))/PageSize*8)); err != nil {
		return 0, err
	}
	frame := binary.NativeEndian.Uint64(entry[:]) & entryFrame
	if frame == 0 {
		return 0, errors.New("/proc/self/pagemap shows no frame numbers: CAP_SYS_ADMIN is needed")
	}
	return frame, nil
}

// joiner joins neighbouring ranges and passes them on as offsets.
type joiner struct {
	addr       uint64
	start, end uint64
	fn         func(off, length int64) error
}

func (j *joiner) add(start, end uint64) error {
	if start == j.end && j.end > j.start {
		j.end = end
		return nil
	}
	if err := j.flush(); err != nil {
		return err
	}
	j.start, j.end = start, end
	return nil
}

func (j *joiner) flush() error {
	if j.start == j.end {
		return nil
	}
	err := j.fn(int64(j.start-j.addr), int64(j.end-j.start))
	j.start, j.end = 0, 0
	return err
}

// ReadMemory reads memory of another process, all of p. Pages that are not there yet fault like the process's own accesses.
func ReadMemory(pid int, addr uint64, p []byte) error {
	for len(p) > 0 {
		local := []unix.Iovec{{Base: &p[0], Len: uint64(len(p))}}
		remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(p)}}
		n, err := unix.ProcessVMReadv(pid, local, remote, 0)
		if err != nil {
			return fmt.Errorf("read memory of process %d at %#x: %w", pid, addr, err)
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}
