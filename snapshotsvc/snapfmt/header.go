package snapfmt

import (
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"sort"
)

// Version1 is the first version of the format. A header of it can be read by every later release.
const Version1 = 1

// Limits of every header; they hold for encoding as for decoding.
const (
	MinBlockSize = 4096
	MaxBlockSize = 65536
	MaxBuilds    = 1024
	MaxRuns      = 1 << 24
)

// ErrInvalid is what every error of this package is: the header, or what it was to be made of, is against the format.
var ErrInvalid = errors.New("invalid header")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// ID names a build. The zero ID means zeros.
type ID [16]byte

// String is the id as 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText is String.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is ParseID.
func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseID(string(text))
	return err
}

// ParseID reads what String writes.
func ParseID(s string) (id ID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) || hex.EncodeToString(b) != s {
		return id, fmt.Errorf("a build id must be 32 hexadecimal digits in lower case, got %.64q", s)
	}
	return ID(b), nil
}

// Run maps blocks of the space to blocks of one build. All numbers but Build are in blocks.
type Run struct {
	Start, Len uint32
	// Build is 0 for zeros, else one more than the index in Header.Builds.
	Build  uint32
	Offset uint32
}

// Header maps a space. It is never changed once it was made.
type Header struct {
	BlockSize int64
	// Size of the space, bytes.
	Size       int64
	Generation uint32
	// Build is this generation's, Parent that of the generation before; zero if there is none.
	Build, Parent ID
	// Builds that Runs name, in the order in which they were added.
	Builds []ID
	Runs   []Run
}

// New makes the header of a space of zeros.
func New(size, blockSize int64) (*Header, error) {
	h := &Header{BlockSize: blockSize, Size: size}
	if err := h.checkSizes(); err != nil {
		return nil, err
	}
	h.Runs = []Run{{Len: h.blocks()}}
	return h, nil
}

func (h *Header) blocks() uint32 { return uint32(h.Size / h.BlockSize) }

func (h *Header) checkSizes() error {
	if h.BlockSize < MinBlockSize || h.BlockSize > MaxBlockSize || h.BlockSize&(h.BlockSize-1) != 0 {
		return invalid("block size must be a power of two from %d to %d, is %d", MinBlockSize, MaxBlockSize, h.BlockSize)
	}
	if h.Size <= 0 || h.Size%h.BlockSize != 0 || h.Size/h.BlockSize > math.MaxUint32 {
		return invalid("size must be a positive multiple of the block size %d with less than 2^32 blocks, is %d", h.BlockSize, h.Size)
	}
	return nil
}

// Validate tells whether h can be encoded: whether it is what doc.go says.
func (h *Header) Validate() error {
	if err := h.checkSizes(); err != nil {
		return err
	}
	if err := h.checkBuilds(); err != nil {
		return err
	}
	return h.checkRuns()
}

func (h *Header) valid() (*Header, error) {
	if err := h.Validate(); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *Header) checkBuilds() error {
	if len(h.Builds) > MaxBuilds {
		return invalid("%d builds; at most %d are legal", len(h.Builds), MaxBuilds)
	}
	seen := make(map[ID]bool, len(h.Builds))
	for i, id := range h.Builds {
		if id == (ID{}) {
			return invalid("build %d of %d has the zero id, which means zeros and is not listed", i+1, len(h.Builds))
		}
		if seen[id] {
			return invalid("build %s is listed twice", id)
		}
		seen[id] = true
	}
	return nil
}

func (h *Header) checkRuns() error {
	if len(h.Runs) == 0 || len(h.Runs) > MaxRuns {
		return invalid("%d runs; 1 to %d are legal", len(h.Runs), MaxRuns)
	}
	named := make([]bool, len(h.Builds)+1)
	at := uint32(0)
	for i, r := range h.Runs {
		switch {
		case r.Start != at:
			return invalid("run %d begins at block %d; it must be %d, where the one before ends", i, r.Start, at)
		case r.Len == 0 || r.Len > h.blocks()-at:
			return invalid("run %d has %d blocks; 1 to %d are legal, which is what is left of the space", i, r.Len, h.blocks()-at)
		case int64(r.Build) > int64(len(h.Builds)):
			return invalid("run %d names build %d of %d", i, r.Build, len(h.Builds))
		case r.Build == 0 && r.Offset != 0:
			return invalid("run %d is zeros and has offset %d; it must be 0", i, r.Offset)
		case r.Len > math.MaxUint32-r.Offset:
			return invalid("run %d goes beyond block 2^32 of its build", i)
		case i > 0 && h.Runs[i-1].goesOn(r):
			return invalid("runs %d and %d are one and must be merged", i-1, i)
		}
		named[r.Build] = true
		at += r.Len
	}
	if at != h.blocks() {
		return invalid("the runs end at block %d of %d", at, h.blocks())
	}
	if i := slices.Index(named[1:], false); i >= 0 {
		return invalid("build %s is listed but no run names it", h.Builds[i])
	}
	return nil
}

// goesOn tells whether next, which follows r in the space, can be one run with it.
func (r Run) goesOn(next Run) bool {
	return r.Build == next.Build && (r.Build == 0 || int64(r.Offset)+int64(r.Len) == int64(next.Offset))
}

// Extent is a part of the space that lies in one piece. All numbers are in bytes, but Build.
type Extent struct {
	Off, Len int64
	// Build is 0 for zeros, else one more than the index in Header.Builds; Offset is where in it the extent begins.
	Build  int
	Offset int64
}

// find returns the index of the run that has a block of the space.
func (h *Header) find(block uint32) int {
	return sort.Search(len(h.Runs), func(i int) bool { return h.Runs[i].Start > block }) - 1
}

// Extents goes through the range of the space that begins at off and has length bytes, in ascending order. It ends where the
// space does. Finding the first costs O(log runs). off need not be a multiple of the block size.
func (h *Header) Extents(off, length int64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		if off < 0 || off >= h.Size || length <= 0 {
			return
		}
		end := off + min(length, h.Size-off)
		for i := h.find(uint32(off / h.BlockSize)); off < end; i++ {
			r := h.Runs[i]
			skip := off - int64(r.Start)*h.BlockSize
			e := Extent{Off: off, Len: min(int64(r.Len)*h.BlockSize-skip, end-off), Build: int(r.Build)}
			if r.Build != 0 {
				e.Offset = int64(r.Offset)*h.BlockSize + skip
			}
			if !yield(e) {
				return
			}
			off += e.Len
		}
	}
}

// Lookup finds the extent that begins at off and goes as far as its run does; false where off is not in the space.
func (h *Header) Lookup(off int64) (Extent, bool) {
	for e := range h.Extents(off, h.Size) {
		return e, true
	}
	return Extent{}, false
}

// BuildID is the build that an extent names; the zero ID for zeros.
func (h *Header) BuildID(e Extent) ID {
	if e.Build == 0 {
		return ID{}
	}
	return h.Builds[e.Build-1]
}

// LiveBytes tells for each of Builds how many of its bytes the header names. The same bytes named twice count twice.
func (h *Header) LiveBytes() []int64 {
	live := make([]int64, len(h.Builds))
	for _, r := range h.Runs {
		if r.Build != 0 {
			live[r.Build-1] += int64(r.Len) * h.BlockSize
		}
	}
	return live
}
