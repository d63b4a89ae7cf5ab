package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sort"

	"golang.org/x/sys/unix"
)

// File is an image that is open for reading. It is safe for concurrent use.
type File struct {
	image Image
	f     *os.File
	data  []extent // what is not holes, ascending, whole blocks
}

// extent is a stretch of the file, bytes.
type extent struct{ off, end int64 }

// Open opens the image's file.
func (i Image) Open() (*File, error) {
	f, err := os.Open(i.Path)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", i.Name, err)
	}
	file := &File{image: i, f: f}
	if err := file.check(); err != nil {
		return nil, errors.Join(fmt.Errorf("image %s: %w", i.Name, err), f.Close())
	}
	return file, nil
}

// Close closes it.
func (f *File) Close() error { return f.f.Close() }

// check finds the extents and makes sure that the file is the one that was found.
func (f *File) check() error {
	if err := f.unchanged(); err != nil {
		return err
	}
	if f.image.Stamp.SizeBytes > f.image.DiskBytes {
		return fmt.Errorf("its file has %d bytes, more than its disk, which has %d", f.image.Stamp.SizeBytes, f.image.DiskBytes)
	}
	fd := int(f.f.Fd())
	for off := int64(0); ; {
		start, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("SEEK_DATA: %w", err)
		}
		if off, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("SEEK_HOLE: %w", err)
		}
		e := extent{start / BlockSize * BlockSize, (off + BlockSize - 1) / BlockSize * BlockSize}
		if n := len(f.data); n > 0 && f.data[n-1].end >= e.off {
			f.data[n-1].end = e.end
			continue
		}
		f.data = append(f.data, e)
	}
}

func (f *File) unchanged() error {
	st, err := f.f.Stat()
	if err != nil {
		return err
	}
	if now := stampOf(f.image.Path, st); now != f.image.Stamp {
		return fmt.Errorf("its file %s was changed meanwhile", f.image.Path)
	}
	return nil
}

// Size of the disk, bytes.
func (f *File) Size() int64 { return f.image.DiskBytes }

// ReadAt fills all of p from the disk at off; beyond the file there are zeros. The bytes come from "local" or are "zero".
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (from string, err error) {
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	if off < 0 || off > f.Size() || int64(len(p)) > f.Size()-off {
		return "", fmt.Errorf("image %s has %d bytes; %d at %d were asked for", f.image.Name, f.Size(), len(p), off)
	}
	if n, zero := f.Run(off); zero && n >= int64(len(p)) {
		clear(p)
		return "zero", nil
	}
	n, err := f.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		err = nil
	}
	if err != nil {
		return "", fmt.Errorf("image %s: %w", f.image.Name, err)
	}
	return "local", nil
}

// Run tells how far the run that off lies in goes on, and whether it is a hole.
func (f *File) Run(off int64) (length int64, zero bool) {
	i := sort.Search(len(f.data), func(i int) bool { return f.data[i].end > off })
	switch {
	case i == len(f.data):
		return f.Size() - off, true
	case f.data[i].off > off:
		return f.data[i].off - off, true
	}
	return f.data[i].end - off, false
}

// walkChunk is how much Walk reads at once, bytes.
const walkChunk = 1 << 20

// Walk hands all blocks that are not zeros to fn, ascending, as many at a time as lie side by side, and returns the image's id.
// fn may be nil; it must not keep p.
func (f *File) Walk(ctx context.Context, fn func(p []byte, off int64) error) (id string, err error) {
	w := walker{hash: sha256.New(), fn: fn}
	w.hash.Write([]byte("covey image 1\n"))
	w.number(f.Size())
	buf := make([]byte, walkChunk)
	for _, e := range f.data {
		for off := e.off; off < e.end; {
			p := buf[:min(walkChunk, e.end-off)]
			if _, err := f.ReadAt(ctx, p, off); err != nil {
				return "", err
			}
			if err := w.chunk(p, off); err != nil {
				return "", err
			}
			off += int64(len(p))
		}
	}
	if err := f.unchanged(); err != nil {
		return "", fmt.Errorf("image %s: %w", f.image.Name, err)
	}
	return hex.EncodeToString(w.hash.Sum(nil)), nil
}

type walker struct {
	hash hash.Hash
	fn   func(p []byte, off int64) error
}

func (w *walker) number(n int64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	w.hash.Write(b[:])
}

var zeroBlock [BlockSize]byte

// chunk takes whole blocks.
func (w *walker) chunk(p []byte, off int64) error {
	start := 0 // of the blocks side by side that are not zeros
	flush := func(end int) error {
		if w.fn == nil || start == end {
			return nil
		}
		return w.fn(p[start:end], off+int64(start))
	}
	for at := 0; at < len(p); at += BlockSize {
		block := p[at : at+BlockSize]
		if bytes.Equal(block, zeroBlock[:]) {
			if err := flush(at); err != nil {
				return err
			}
			start = at + BlockSize
			continue
		}
		w.number(off + int64(at))
		w.hash.Write(block)
	}
	return flush(len(p))
}
