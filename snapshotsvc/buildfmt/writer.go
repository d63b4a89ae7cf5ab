package buildfmt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// Options of a Writer.
type Options struct {
	Kind Kind
	// FrameSize in bytes; 0 means DefaultFrameSize.
	FrameSize int
	// Workers that compress at the same time; 0 means 1.
	Workers int
}

// Info is what was written.
type Info struct {
	ID   snapfmt.ID
	Kind Kind
	// Size of the build, and Stored of its file, bytes.
	Size, Stored int64
	// SHA256 of the file.
	SHA256 [32]byte
	Frames int
}

// Writer writes one build. It belongs to one goroutine, and has some of its own until Close or Abort.
type Writer struct {
	layout layout
	out    io.Writer
	hash   hash.Hash // of the file
	offset int64     // in the file
	index  []byte

	cur   *frame
	free  chan *frame // those that nobody uses
	work  chan *frame // to the workers
	order chan *frame // the same, to the goroutine that writes
	wg    sync.WaitGroup
	ended bool

	mu  sync.Mutex
	err error // guarded by mu; the first failure of a goroutine
}

// frame is one frame on its way through the writer.
type frame struct {
	raw      []byte
	packed   []byte
	encoding Encoding
	sum      [sumSize]byte
	done     chan struct{} // gets one value when a worker is done with it
}

// stored are the bytes that go into the file.
func (f *frame) stored() []byte {
	switch f.encoding {
	case Zeros:
		return nil
	case Raw:
		return f.raw
	}
	return f.packed
}

// NewWriter begins a build on out.
func NewWriter(out io.Writer, o Options) (*Writer, error) {
	if o.FrameSize == 0 {
		o.FrameSize = DefaultFrameSize
	}
	w := &Writer{layout: layout{frameSize: int64(o.FrameSize), kind: o.Kind}, out: out, hash: sha256.New()}
	probe := w.layout
	probe.size = BlockSize
	if err := probe.check(); err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	if err := w.put(w.layout.prefix()); err != nil {
		return nil, err
	}
	workers := max(1, o.Workers)
	frames := 2*workers + 2
	w.free, w.work, w.order = make(chan *frame, frames), make(chan *frame, frames), make(chan *frame, frames)
	for range frames {
		w.free <- &frame{raw: make([]byte, 0, o.FrameSize), done: make(chan struct{}, 1)}
	}
	for range workers {
		w.wg.Go(w.pack)
	}
	w.wg.Go(w.drain)
	return w, nil
}

// Write appends bytes to the build. It keeps nothing of p.
func (w *Writer) Write(p []byte) (n int, err error) {
	if w.ended {
		return 0, errors.New("build: write after its end")
	}
	for len(p) > 0 {
		if w.cur == nil {
			if err := w.failed(); err != nil {
				return n, err
			}
			w.cur = <-w.free
			w.cur.raw = w.cur.raw[:0]
		}
		m := min(len(p), cap(w.cur.raw)-len(w.cur.raw))
		w.cur.raw = append(w.cur.raw, p[:m]...)
		p, n = p[m:], n+m
		w.layout.size += int64(m)
		if len(w.cur.raw) == cap(w.cur.raw) {
			w.flush()
		}
	}
	return n, nil
}

// flush hands the current frame on. The channels have room for every frame there is.
func (w *Writer) flush() {
	f := w.cur
	w.cur = nil
	w.order <- f
	w.work <- f
}

// Size is how many bytes were written until now: the offset in the build of what is written next.
func (w *Writer) Size() int64 { return w.layout.size }

// Close writes what is missing and returns when everything was handed to out. A build of nothing cannot be written.
func (w *Writer) Close() (Info, error) {
	if w.ended {
		return Info{}, errors.New("build: closed before")
	}
	if w.cur != nil {
		w.flush()
	}
	w.Abort()
	if w.err != nil {
		return Info{}, w.err
	}
	l := &w.layout
	l.frames, l.indexOffset = len(w.index)/entrySize, w.offset
	if err := l.check(); err != nil {
		return Info{}, fmt.Errorf("build: %w", err)
	}
	footer, id := l.footer(w.index)
	if err := w.put(w.index); err != nil {
		return Info{}, err
	}
	if err := w.put(footer); err != nil {
		return Info{}, err
	}
	return Info{ID: id, Kind: l.kind, Size: l.size, Stored: w.offset, SHA256: [32]byte(w.hash.Sum(nil)), Frames: l.frames}, nil
}

// Abort ends the writer; what it wrote is not a build. After Close or Abort it does nothing.
func (w *Writer) Abort() {
	if w.ended {
		return
	}
	w.ended = true
	close(w.work)
	close(w.order)
	w.wg.Wait()
}

func (w *Writer) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// drain writes frames in their order and gives them back.
func (w *Writer) drain() {
	for f := range w.order {
		<-f.done
		if w.failed() == nil {
			if err := w.append(f); err != nil {
				w.mu.Lock()
				w.err = err
				w.mu.Unlock()
			}
		}
		w.free <- f
	}
}

func (w *Writer) append(f *frame) error {
	stored := f.stored()
	w.index = binary.LittleEndian.AppendUint32(w.index, uint32(len(stored)))
	w.index = binary.LittleEndian.AppendUint32(w.index, uint32(f.encoding))
	w.index = append(w.index, f.sum[:]...)
	return w.put(stored)
}

func (w *Writer) put(p []byte) error {
	w.hash.Write(p)
	w.offset += int64(len(p))
	if _, err := w.out.Write(p); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	return nil
}

// pack compresses frames as long as there are any.
func (w *Writer) pack() {
	for f := range w.work {
		f.pack()
		f.done <- struct{}{}
	}
}

func (f *frame) pack() {
	f.sum = [sumSize]byte{}
	if isZero(f.raw) {
		f.encoding = Zeros
		return
	}
	f.packed = encoder().EncodeAll(f.raw, f.packed[:0])
	f.encoding = Zstd
	// What saves less than an eighth is not worth unpacking.
	if len(f.packed) > len(f.raw)-len(f.raw)/8 {
		f.encoding = Raw
	}
	f.sum = sum(f.stored())
}

// encoder is shared: EncodeAll has state of its own for each call. Frames have checksums of ours.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
		zstd.WithWindowSize(MaxFrameSize))
	if err != nil {
		panic("zstd: " + err.Error()) // only for options out of range
	}
	return e
})

var zeroBlock [BlockSize]byte

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeroBlock))
		if !bytes.Equal(p[:n], zeroBlock[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
