package pagertest

import (
	"bytes"
	"context"
	"encoding/binary"
)

const pageSize = 4096

// Pattern is a memory whose content follows from its seed, so that every process knows it. It is a pager.Source, and Local.
type Pattern struct {
	Seed  uint64
	Bytes int64
	// Zeros: of each such many runs of 16 pages, one is zeros; 0: none are; -1: all are.
	Zeros int64
}

const patternRun = 16 * pageSize

// Size of the memory, in bytes.
func (p Pattern) Size() int64 { return p.Bytes }

// Run tells runs of zeros.
func (p Pattern) Run(off int64) (int64, bool) {
	if p.Zeros == 0 {
		return p.Bytes - off, false
	}
	return min(patternRun-off%patternRun, p.Bytes-off), p.isZero(off)
}

func (p Pattern) isZero(off int64) bool {
	return p.Zeros < 0 || p.Zeros > 0 && off/patternRun%p.Zeros == 1
}

// ReadAt reads pages.
func (p Pattern) ReadAt(_ context.Context, b []byte, off int64) (string, error) {
	for i := 0; i < len(b); i += pageSize {
		p.page(b[i:i+pageSize], off+int64(i))
	}
	return "local", nil
}

// Local: it never waits.
func (p Pattern) Local(int64, int64) bool { return true }

// page makes the page at off.
func (p Pattern) page(b []byte, off int64) {
	clear(b)
	if p.isZero(off) {
		return
	}
	for i := 0; i < pageSize; i += 512 {
		binary.LittleEndian.PutUint64(b[i:], mix(p.Seed^uint64(off+int64(i))))
	}
}

// Is tells whether b is the page at off.
func (p Pattern) Is(b []byte, off int64) bool {
	var want [pageSize]byte
	p.page(want[:], off)
	return bytes.Equal(b, want[:])
}

// mix is splitmix64's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
