// Package payload makes a guest of a few instructions: an ELF file that a VMM boots like a Linux kernel.
//
// It counts in memory and reports on the serial port, so that a driver can be tried where KVM runs small guests though not a stock
// kernel. All of its memory follows from its counter, so what a snapshot holds can be checked byte by byte.
//
// The code is asm/counter.S; counter.bin holds it assembled, so that no assembler is needed to run it. `go test -update` makes it again.
package payload

import (
	"bytes"
	_ "embed"
	"encoding/binary"
)

// Where things are in guest memory.
const (
	Load     = 0x1000000
	Counter  = 0x2000000
	Patterns = 0x2100000
	Ring     = 0x2200000
	// Page is a page's size, and PatternPages and RingPages how many there are.
	Page         = 4096
	PatternPages = 64
	RingPages    = 16
	// MemoryBytes is the least memory that a VM needs to run it, rounded up.
	MemoryBytes = 64 << 20
)

//go:embed counter.bin
var code []byte

// ELF is the kernel image: one segment, loaded at Load, where it is entered in 64-bit mode.
func ELF() []byte {
	const header, segment = 64, 56
	var b bytes.Buffer
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // 64 bits, little-endian, version 1
	put := func(values ...any) {
		for _, v := range values {
			binary.Write(&b, binary.LittleEndian, v) // a bytes.Buffer takes everything
		}
	}
	put(uint16(2), uint16(62), uint32(1), uint64(Load)) // executable, x86-64, version 1, entry
	put(uint64(header), uint64(0), uint32(0), uint16(header), uint16(segment), uint16(1), uint16(0), uint16(0), uint16(0))
	put(uint32(1), uint32(5), uint64(header+segment), uint64(Load), uint64(Load), uint64(len(code)), uint64(len(code)), uint64(Page))
	b.Write(code)
	return b.Bytes()
}

// Expect is what page i of the ring holds first after so many counts, and what pattern i is made of.
func Expect(count uint64, i int) (ring, pattern uint64) {
	if n := count - (count-uint64(i))%RingPages; count >= uint64(i) && n > 0 {
		ring = n
	}
	return ring, uint64(i+1) * 0x0101010101010101
}

// Written is the ring's pages that change between two counts.
func Written(from, to uint64) map[int]bool {
	pages := map[int]bool{}
	for n := from + 1; n <= to && len(pages) < RingPages; n++ {
		pages[int(n%RingPages)] = true
	}
	return pages
}
