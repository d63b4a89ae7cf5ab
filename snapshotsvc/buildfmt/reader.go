package buildfmt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// Source is a build's file that can be read by ranges. It is safe for concurrent use.
type Source interface {
	// ReadAt fills all of p and tells where the bytes came from, in words of the source's own. A file that is too short is
	// io.EOF or io.ErrUnexpectedEOF.
	ReadAt(ctx context.Context, p []byte, off int64) (from string, err error)
}

// File is a Source of a file of this host; its bytes come from "local".
func File(f io.ReaderAt) Source { return file{f} }

type file struct{ f io.ReaderAt }

func (s file) ReadAt(_ context.Context, p []byte, off int64) (string, error) {
	n, err := s.f.ReadAt(p, off)
	if n == len(p) {
		err = nil
	}
	return "local", err
}

// Reader reads one build. It is safe for concurrent use.
type Reader struct {
	layout  layout
	id      snapfmt.ID
	src     Source
	index   []byte
	offsets []int64 // of frames in the file
}

// tailSize is how much Open reads of a file's end at once: footer and, unless it compresses very well, the index.
func tailSize(fileSize int64) int64 {
	return min(fileSize, max(4<<10, min(64<<10, fileSize/512)))
}

// Open reads what is needed to read a build, whose file has fileSize bytes. With the zero id, it is whatever build is there.
// A *CorruptError says what is wrong with it; any other error is the source's.
func Open(ctx context.Context, src Source, fileSize int64, id snapfmt.ID) (*Reader, error) {
	r := &Reader{id: id, src: src}
	if err := r.open(ctx, fileSize); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Reader) open(ctx context.Context, fileSize int64) error {
	if fileSize < prefixSize+footerSize {
		return r.corrupt(-1, "%d bytes are too few for a build", fileSize)
	}
	prefix, tail := make([]byte, prefixSize), make([]byte, tailSize(fileSize))
	if err := r.read(ctx, -1, tail, fileSize-int64(len(tail))); err != nil {
		return err
	}
	if int64(len(tail)) == fileSize {
		copy(prefix, tail)
	} else if err := r.read(ctx, -1, prefix, 0); err != nil {
		return err
	}
	if err := r.layout.parsePrefix(prefix); err != nil {
		return r.corrupt(-1, "%v", err)
	}
	footer := tail[len(tail)-footerSize:]
	if err := r.layout.parseFooter(footer, fileSize); err != nil {
		return r.corrupt(-1, "%v", err)
	}
	rest := fileSize - int64(len(tail)) - r.layout.indexOffset // bytes of the index that tail lacks
	if rest <= 0 {
		r.index = bytes.Clone(tail[-rest : len(tail)-footerSize])
	} else {
		r.index = make([]byte, r.layout.frames*entrySize)
		n := copy(r.index[rest:], tail)
		if int64(n) != int64(len(r.index))-rest {
			return r.corrupt(-1, "the index is not where the footer says")
		}
		if err := r.read(ctx, -1, r.index[:rest], r.layout.indexOffset); err != nil {
			return err
		}
	}
	return r.adopt(footer)
}

// adopt makes sure that index and footer are those of the build, and finds where frames lie.
func (r *Reader) adopt(footer []byte) error {
	want, id := r.layout.footer(r.index)
	switch {
	case r.id == snapfmt.ID{}:
		r.id = id
	case r.id != id:
		return r.corrupt(-1, "its index is that of build %s", id)
	}
	if !bytes.Equal(footer, want) {
		return r.corrupt(-1, "the footer does not fit the index")
	}
	r.offsets = make([]int64, r.layout.frames)
	at := int64(prefixSize)
	for i := range r.offsets {
		r.offsets[i] = at
		f := r.Frame(i)
		ok := f.Encoding == Zeros && f.Stored == 0 || f.Encoding == Raw && f.Stored == f.Len || f.Encoding == Zstd && f.Stored > 0 && f.Stored < f.Len
		if !ok {
			return r.corrupt(i, "the index says %d bytes, %s, for %d", f.Stored, f.Encoding, f.Len)
		}
		at += int64(f.Stored)
	}
	if at != r.layout.indexOffset {
		return r.corrupt(-1, "its frames end at %d and its index begins at %d", at, r.layout.indexOffset)
	}
	return nil
}

func (r *Reader) corrupt(frame int, format string, args ...any) error {
	return &CorruptError{r.id, frame, fmt.Sprintf(format, args...)}
}

// read fills p. A file that ends before is damaged.
func (r *Reader) read(ctx context.Context, frame int, p []byte, off int64) error {
	_, err := r.readFrom(ctx, frame, p, off)
	return err
}

func (r *Reader) readFrom(ctx context.Context, frame int, p []byte, off int64) (string, error) {
	from, err := r.src.ReadAt(ctx, p, off)
	switch {
	case err == nil:
		return from, nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "", r.corrupt(frame, "the file ends before byte %d", off+int64(len(p)))
	case frame < 0:
		return "", fmt.Errorf("build %s: %w", r.id, err)
	}
	return "", fmt.Errorf("build %s, frame %d: %w", r.id, frame, err)
}

// ID, Kind and Size describe the build; Size is in bytes.
func (r *Reader) ID() snapfmt.ID { return r.id }

// Kind tells what it is data of.
func (r *Reader) Kind() Kind { return r.layout.kind }

// Size of the build, bytes.
func (r *Reader) Size() int64 { return r.layout.size }

// FrameSize is the length of all frames but the last, bytes.
func (r *Reader) FrameSize() int64 { return r.layout.frameSize }

// Frames is how many there are.
func (r *Reader) Frames() int { return r.layout.frames }

// IndexOffset is where the frames end in the file.
func (r *Reader) IndexOffset() int64 { return r.layout.indexOffset }

// Frame describes one frame.
type Frame struct {
	// Len is how many bytes it holds, Stored how many it takes in the file, at Offset.
	Len, Stored int
	Offset      int64
	Encoding    Encoding
}

// Frame describes frame i, which is from 0 to Frames-1.
func (r *Reader) Frame(i int) Frame {
	e := r.index[i*entrySize:]
	return Frame{
		Len: r.layout.frameLen(i), Stored: int(binary.LittleEndian.Uint32(e)), Offset: r.offsets[i], Encoding: Encoding(binary.LittleEndian.Uint32(e[4:])),
	}
}

// Check tells whether stored are frame i's stored bytes.
func (r *Reader) Check(i int, stored []byte) error {
	f := r.Frame(i)
	if len(stored) != f.Stored {
		return r.corrupt(i, "%d stored bytes; it has %d", len(stored), f.Stored)
	}
	if f.Encoding == Zeros {
		return nil
	}
	want := r.index[i*entrySize+8:][:sumSize]
	if got := sum(stored); !bytes.Equal(got[:], want) {
		return r.corrupt(i, "checksum is %x, must be %x", got, want)
	}
	return nil
}

// Unpack checks frame i's stored bytes and unpacks them into dst, which has the frame's length.
func (r *Reader) Unpack(i int, stored, dst []byte) error {
	if err := r.Check(i, stored); err != nil {
		return err
	}
	f := r.Frame(i)
	if len(dst) != f.Len {
		return fmt.Errorf("build %s, frame %d: %d bytes to unpack into; it has %d", r.id, i, len(dst), f.Len)
	}
	switch f.Encoding {
	case Zeros:
		clear(dst)
	case Raw:
		copy(dst, stored)
	default:
		out, err := decoder().DecodeAll(stored, dst[:0:f.Len])
		if err != nil {
			return r.corrupt(i, "%v", err)
		}
		if len(out) != f.Len {
			return r.corrupt(i, "it unpacks to %d bytes, must be %d", len(out), f.Len)
		}
	}
	return nil
}

// ReadFrame reads frame i into dst, which has the frame's length, and tells where it came from.
func (r *Reader) ReadFrame(ctx context.Context, i int, dst []byte) (from string, err error) {
	buf := storedBuffers.Get().(*[]byte)
	defer storedBuffers.Put(buf)
	f := r.Frame(i)
	if cap(*buf) < f.Stored {
		*buf = make([]byte, r.layout.frameSize)
	}
	stored := (*buf)[:f.Stored]
	if f.Stored > 0 {
		if from, err = r.readFrom(ctx, i, stored, f.Offset); err != nil {
			return "", err
		}
	}
	return from, r.Unpack(i, stored, dst)
}

var storedBuffers = sync.Pool{New: func() any { return new([]byte) }}

// ReadAt fills all of p from the build's bytes at off. It reads whole frames and keeps none.
func (r *Reader) ReadAt(ctx context.Context, p []byte, off int64) (from string, err error) {
	if off < 0 || off > r.layout.size || int64(len(p)) > r.layout.size-off {
		return "", r.corrupt(-1, "it has %d bytes; %d at %d were asked for", r.layout.size, len(p), off)
	}
	var whole []byte
	for len(p) > 0 {
		i := int(off / r.layout.frameSize)
		n, skip := r.layout.frameLen(i), int(off%r.layout.frameSize)
		if skip == 0 && len(p) >= n {
			if from, err = r.ReadFrame(ctx, i, p[:n]); err != nil {
				return "", err
			}
			p, off = p[n:], off+int64(n)
			continue
		}
		if whole == nil {
			whole = make([]byte, r.layout.frameSize)
		}
		if from, err = r.ReadFrame(ctx, i, whole[:n]); err != nil {
			return "", err
		}
		m := copy(p, whole[skip:n])
		p, off = p[m:], off+int64(m)
	}
	return from, nil
}

// decoder is shared: DecodeAll has state of its own for each call. It never yields more than there is room for.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(MaxFrameSize),
		zstd.WithDecoderMaxWindow(MaxFrameSize))
	if err != nil {
		panic("zstd: " + err.Error()) // only for options out of range
	}
	return d
})
