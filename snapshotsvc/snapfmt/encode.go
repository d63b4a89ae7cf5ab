package snapfmt

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
)

const (
	magic      = "COVEYHDR"
	fixedSize  = 72
	buildSize  = 16
	runSize    = 16
	sumSize    = 4
	minEncoded = fixedSize + runSize + sumSize
)

// MaxEncodedSize is the length of the longest legal encoding, bytes.
const MaxEncodedSize = fixedSize + MaxBuilds*buildSize + MaxRuns*runSize + sumSize

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode writes a header in its one encoding.
func (h *Header) Encode() ([]byte, error) {
	if err := h.Validate(); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	b := make([]byte, 0, h.EncodedSize())
	b = append(b, magic...)
	b = le.AppendUint32(b, Version1)
	b = le.AppendUint32(b, uint32(h.BlockSize))
	b = le.AppendUint64(b, uint64(h.Size))
	b = le.AppendUint32(b, h.Generation)
	b = le.AppendUint32(b, uint32(len(h.Builds)))
	b = le.AppendUint32(b, uint32(len(h.Runs)))
	b = le.AppendUint32(b, 0)
	b = append(b, h.Build[:]...)
	b = append(b, h.Parent[:]...)
	for _, id := range h.Builds {
		b = append(b, id[:]...)
	}
	for _, r := range h.Runs {
		b = le.AppendUint32(b, r.Start)
		b = le.AppendUint32(b, r.Len)
		b = le.AppendUint32(b, r.Build)
		b = le.AppendUint32(b, r.Offset)
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

// EncodedSize is the length of the encoding, bytes.
func (h *Header) EncodedSize() int64 {
	return encodedSize(uint32(len(h.Builds)), uint32(len(h.Runs)))
}

func encodedSize(builds, runs uint32) int64 {
	return fixedSize + int64(builds)*buildSize + int64(runs)*runSize + sumSize
}

// Decode reads a header and validates it. It keeps nothing of b.
func Decode(b []byte) (*Header, error) {
	le := binary.LittleEndian
	if len(b) < len(magic)+4 || !bytes.Equal(b[:len(magic)], []byte(magic)) {
		return nil, invalid("it does not begin with the magic %q", magic)
	}
	if v := le.Uint32(b[8:]); v != Version1 {
		return nil, invalid("format version %d; this release reads version %d", v, Version1)
	}
	if len(b) < minEncoded {
		return nil, invalid("%d bytes; the shortest has %d", len(b), minEncoded)
	}
	builds, runs := le.Uint32(b[28:]), le.Uint32(b[32:])
	if builds > MaxBuilds || runs == 0 || runs > MaxRuns {
		return nil, invalid("%d builds and %d runs; at most %d and 1 to %d are legal", builds, runs, MaxBuilds, MaxRuns)
	}
	if want := encodedSize(builds, runs); int64(len(b)) != want {
		return nil, invalid("%d bytes; with %d builds and %d runs it must be %d", len(b), builds, runs, want)
	}
	body := b[:len(b)-sumSize]
	if sum, want := crc32.Checksum(body, castagnoli), le.Uint32(b[len(body):]); sum != want {
		return nil, invalid("checksum is %08x, must be %08x", sum, want)
	}
	if le.Uint32(b[36:]) != 0 {
		return nil, invalid("the reserved field is not zero")
	}
	size := le.Uint64(b[16:])
	if size > math.MaxInt64 {
		return nil, invalid("size %d is too large", size)
	}
	h := &Header{
		BlockSize: int64(le.Uint32(b[12:])), Size: int64(size), Generation: le.Uint32(b[24:]), Build: ID(b[40:56]), Parent: ID(b[56:72]),
	}
	h.decodeTables(body[fixedSize:], int(builds), int(runs))
	return h.valid()
}

func (h *Header) decodeTables(b []byte, builds, runs int) {
	if builds > 0 {
		h.Builds = make([]ID, builds)
	}
	for i := range h.Builds {
		h.Builds[i] = ID(b[i*buildSize:])
	}
	b = b[builds*buildSize:]
	h.Runs = make([]Run, runs)
	le := binary.LittleEndian
	for i := range h.Runs {
		r := b[i*runSize:]
		h.Runs[i] = Run{Start: le.Uint32(r), Len: le.Uint32(r[4:]), Build: le.Uint32(r[8:]), Offset: le.Uint32(r[12:])}
	}
}
