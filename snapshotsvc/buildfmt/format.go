package buildfmt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// Version1 is the first version of the format. A build of it can be read by every later release.
const Version1 = 1

// Limits of every build; they hold for writing as for reading.
const (
	BlockSize        = 4096
	MinFrameSize     = 4096
	MaxFrameSize     = 1 << 20
	DefaultFrameSize = 64 << 10
	MaxSize          = 1 << 44
	MaxFrames        = 1 << 24
)

const (
	prefixMagic = "COVEYBLD"
	footerMagic = "COVEYEND"
	prefixSize  = 32
	entrySize   = 24
	footerSize  = 48
	signedSize  = 24 // bytes of the footer that the id covers
	sumSize     = 16
)

// Kind says what a build is data of.
type Kind uint8

// The kinds of build.
const (
	Memory Kind = 1
	Disk   Kind = 2
)

func (k Kind) String() string {
	switch k {
	case Memory:
		return "memory"
	case Disk:
		return "disk"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Encoding is how a frame is stored.
type Encoding uint32

// The encodings of frames.
const (
	Zeros Encoding = 0
	Raw   Encoding = 1
	Zstd  Encoding = 2
)

func (e Encoding) String() string {
	switch e {
	case Zeros:
		return "zeros"
	case Raw:
		return "raw"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("encoding %d", uint32(e))
}

// ErrCorrupt is what every CorruptError is.
var ErrCorrupt = errors.New("build is damaged")

// CorruptError is data that is not what was written, or not in this format.
type CorruptError struct {
	Build snapfmt.ID
	// Frame is the index of the frame; -1 where the damage is in prefix, index or footer.
	Frame   int
	Problem string
}

func (e *CorruptError) Error() string {
	if e.Frame < 0 {
		return fmt.Sprintf("build %s is damaged: %s", e.Build, e.Problem)
	}
	return fmt.Sprintf("build %s is damaged in frame %d: %s", e.Build, e.Frame, e.Problem)
}

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// layout is what prefix and footer say.
type layout struct {
	frameSize   int64
	kind        Kind
	size        int64
	indexOffset int64
	frames      int
}

func (l *layout) check() error {
	switch {
	case l.frameSize < MinFrameSize || l.frameSize > MaxFrameSize || l.frameSize&(l.frameSize-1) != 0:
		return fmt.Errorf("frame size must be a power of two from %d to %d, is %d", MinFrameSize, MaxFrameSize, l.frameSize)
	case l.kind != Memory && l.kind != Disk:
		return fmt.Errorf("kind must be 1 or 2, is %d", l.kind)
	case l.size <= 0 || l.size > MaxSize || l.size%BlockSize != 0:
		return fmt.Errorf("size must be a positive multiple of %d up to %d, is %d", BlockSize, int64(MaxSize), l.size)
	case (l.size+l.frameSize-1)/l.frameSize > MaxFrames:
		return fmt.Errorf("%d bytes in frames of %d are more than %d frames", l.size, l.frameSize, MaxFrames)
	}
	return nil
}

// frameLen is how many bytes frame i holds.
func (l *layout) frameLen(i int) int {
	return int(min(l.frameSize, l.size-int64(i)*l.frameSize))
}

func (l *layout) prefix() []byte {
	b := make([]byte, prefixSize)
	copy(b, prefixMagic)
	binary.LittleEndian.PutUint32(b[8:], Version1)
	binary.LittleEndian.PutUint32(b[12:], uint32(l.frameSize))
	b[16] = byte(l.kind)
	return b
}

// footer makes the footer and with it the build's id.
func (l *layout) footer(index []byte) ([]byte, snapfmt.ID) {
	b := make([]byte, footerSize)
	le := binary.LittleEndian
	le.PutUint64(b, uint64(l.size))
	le.PutUint64(b[8:], uint64(l.indexOffset))
	le.PutUint32(b[16:], uint32(l.frames))
	h := sha256.New()
	h.Write(l.prefix())
	h.Write(index)
	h.Write(b[:signedSize])
	id := snapfmt.ID(h.Sum(nil))
	copy(b[signedSize:], id[:])
	copy(b[signedSize+len(id):], footerMagic)
	return b, id
}

func (l *layout) parsePrefix(b []byte) error {
	if !bytes.Equal(b[:len(prefixMagic)], []byte(prefixMagic)) {
		return fmt.Errorf("it does not begin with the magic %q", prefixMagic)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != Version1 {
		return fmt.Errorf("format version %d; this release reads version %d", v, Version1)
	}
	l.frameSize, l.kind = int64(binary.LittleEndian.Uint32(b[12:])), Kind(b[16])
	if !bytes.Equal(b, l.prefix()) {
		return errors.New("the reserved part of the prefix is not zero")
	}
	return nil
}

// parseFooter reads the footer of a file of fileSize bytes whose prefix was read.
func (l *layout) parseFooter(b []byte, fileSize int64) error {
	le := binary.LittleEndian
	if !bytes.Equal(b[40:], []byte(footerMagic)) {
		return fmt.Errorf("it does not end with the magic %q; it is cut off or has something behind its end", footerMagic)
	}
	size, offset := le.Uint64(b), le.Uint64(b[8:])
	if size > MaxSize || offset > uint64(fileSize) {
		return fmt.Errorf("the footer says size %d and index at %d, which cannot be in a file of %d bytes", size, offset, fileSize)
	}
	l.size, l.indexOffset, l.frames = int64(size), int64(offset), int(le.Uint32(b[16:]))
	if err := l.check(); err != nil {
		return err
	}
	if want := (l.size + l.frameSize - 1) / l.frameSize; int64(l.frames) != want {
		return fmt.Errorf("the footer says %d frames; %d bytes have %d", l.frames, l.size, want)
	}
	if want := l.indexOffset + int64(l.frames)*entrySize + footerSize; want != fileSize || l.indexOffset < prefixSize {
		return fmt.Errorf("the file has %d bytes; with %d frames and the index at %d it must have %d", fileSize, l.frames, l.indexOffset, want)
	}
	return nil
}

func sum(stored []byte) (s [sumSize]byte) {
	full := sha256.Sum256(stored)
	copy(s[:], full[:])
	return s
}
