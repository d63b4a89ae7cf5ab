package snapstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// packer packs blocks into a new build and notes where each went. It belongs to one goroutine. Offsets ascend.
type packer struct {
	path    string
	f       *os.File
	w       *buildfmt.Writer
	changes []change
}

// change is a range of the space: data in the build at offset, or zeros.
type change struct {
	off, length, offset int64
	zero                bool
}

// packed is what a packer made. Where there was no data, there is no build.
type packed struct {
	path    string
	info    buildfmt.Info // zero if there is no build
	changes []snapfmt.Change
}

func (s *Store) newPacker(dir string, kind buildfmt.Kind) (*packer, error) {
	p := &packer{path: filepath.Join(dir, kind.String()+".build")}
	var err error
	if p.f, err = os.OpenFile(p.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	if p.w, err = buildfmt.NewWriter(&spooler{f: p.f}, buildfmt.Options{Kind: kind, Workers: s.conf.Workers}); err != nil {
		return nil, errors.Join(err, p.f.Close())
	}
	return p, nil
}

// put takes blocks that are not zeros.
func (p *packer) put(data []byte, off int64) error {
	p.note(change{off: off, length: int64(len(data)), offset: p.w.Size()})
	_, err := p.w.Write(data)
	return err
}

// putMixed takes blocks of which some may be zeros.
func (p *packer) putMixed(data []byte, off int64) error {
	for len(data) > 0 {
		zero := isZero(data[:BlockSize])
		n := BlockSize
		for n < len(data) && isZero(data[n:n+BlockSize]) == zero {
			n += BlockSize
		}
		if zero {
			p.zeros(off, int64(n))
		} else if err := p.put(data[:n], off); err != nil {
			return err
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

var zeroBlock [BlockSize]byte

func isZero(block []byte) bool { return bytes.Equal(block, zeroBlock[:]) }

func (p *packer) zeros(off, length int64) { p.note(change{off: off, length: length, zero: true}) }

func (p *packer) note(c change) {
	if n := len(p.changes); n > 0 {
		last := &p.changes[n-1]
		if last.off+last.length == c.off && last.zero == c.zero {
			last.length += c.length
			return
		}
	}
	p.changes = append(p.changes, c)
}

// packChunk is how much is read at once, bytes.
const packChunk = 256 << 10

// putRanges takes changed ranges, whose data it reads from src.
func (p *packer) putRanges(ctx context.Context, ranges []Range, src interface {
	ReadAt(p []byte, off int64) (int, error)
}) error {
	buf := make([]byte, packChunk)
	for _, r := range ranges {
		if r.Zero {
			p.zeros(r.Off, r.Len)
			continue
		}
		for off, end := r.Off, r.Off+r.Len; off < end; {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			part := buf[:min(packChunk, end-off)]
			if n, err := src.ReadAt(part, off); n < len(part) {
				return err
			}
			if err := p.putMixed(part, off); err != nil {
				return err
			}
			off += int64(len(part))
		}
	}
	return nil
}

// finish ends the build. It is not synced yet.
func (p *packer) finish() (*packed, error) {
	done := &packed{path: p.path}
	if p.w.Size() > 0 {
		info, err := p.w.Close()
		if err != nil {
			return nil, err
		}
		done.info = info
	}
	for _, c := range p.changes {
		change := snapfmt.Change{Off: c.off, Len: c.length}
		if !c.zero {
			change.Build, change.Offset = done.info.ID, c.offset
		}
		done.changes = append(done.changes, change)
	}
	return done, p.f.Close()
}

// abort ends a packer that was not finished, else it does nothing. The file is left for who removes the directory.
func (p *packer) abort() {
	p.w.Abort()
	p.f.Close()
}

func (p *packed) id() snapfmt.ID { return p.info.ID }

// records describes the build, if there is one.
func (p *packed) records() []Build {
	if p.info.Stored == 0 {
		return nil
	}
	i := p.info
	return []Build{{ID: i.ID, Kind: i.Kind.String(), Data: Object{Key: buildKey(i.ID), Size: i.Stored, SHA256: i.SHA256}}}
}
