package snapstore

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// BlockSize is the unit of headers that this package makes, bytes.
const BlockSize = buildfmt.BlockSize

// View is an address space that can be read, as long as the snapshot that it is of is pinned. It is safe for concurrent use.
type View struct {
	what   string // for errors: "memory of snapshot snap_1"
	header *snapfmt.Header
	builds []*build // as header.Builds
}

// Size of the space, bytes.
func (v *View) Size() int64 { return v.header.Size }

// Header is what the view reads by.
func (v *View) Header() *snapfmt.Header { return v.header }

// checkExtents makes sure that the header names nothing that its builds, which are open, do not have.
func (v *View) checkExtents() error {
	sizes := make([]int64, len(v.builds))
	for i, b := range v.builds {
		body, err := b.opened()
		if err != nil {
			return err
		}
		sizes[i] = body.reader.Size()
	}
	for e := range v.header.Extents(0, v.Size()) {
		if e.Build != 0 && e.Offset+e.Len > sizes[e.Build-1] {
			return fmt.Errorf("it names %d bytes at %d of build %s, which has %d", e.Len, e.Offset, v.header.BuildID(e), sizes[e.Build-1])
		}
	}
	return nil
}

// ReadAt fills all of p from off, both multiples of BlockSize within Size. It tells the farthest place that bytes came from:
// "registry", "peer", "local" or, if there was nothing but zeros, "zero". machine.ErrDamaged where saved bytes are not what
// was written.
func (v *View) ReadAt(ctx context.Context, p []byte, off int64) (from string, err error) {
	if off < 0 || off%BlockSize != 0 || len(p)%BlockSize != 0 || off > v.Size() || int64(len(p)) > v.Size()-off {
		return "", fmt.Errorf("%s: %d bytes at %#x were asked for; they must be whole blocks of %d within %d bytes", v.what, len(p), off, BlockSize, v.Size())
	}
	from = fromZero
	if fetched, err := v.fetch(ctx, off, int64(len(p))); err != nil {
		return "", v.failure(off, err)
	} else if fetched != "" {
		from = fetched
	}
	for e := range v.header.Extents(off, int64(len(p))) {
		part := p[e.Off-off:][:e.Len]
		if e.Build == 0 {
			clear(part)
			continue
		}
		f, err := v.builds[e.Build-1].readAt(ctx, part, e.Offset)
		if err != nil {
			return "", v.failure(e.Off, err)
		}
		from = farther(from, f)
	}
	return from, nil
}

func (v *View) failure(off int64, err error) error {
	if errors.Is(err, buildfmt.ErrCorrupt) {
		return fmt.Errorf("%s at offset %#x: %w: %w", v.what, off, machine.ErrDamaged, err)
	}
	return fmt.Errorf("%s at offset %#x: %w", v.what, off, err)
}

// fetch brings what the range needs of builds of elsewhere, of all builds at the same time.
func (v *View) fetch(ctx context.Context, off, length int64) (from string, err error) {
	type need struct {
		body       *buildBody
		first, end int // frames
		from       string
	}
	var needs []*need
	for e := range v.header.Extents(off, length) {
		if e.Build == 0 {
			continue
		}
		body := v.builds[e.Build-1].body.Load()
		if body == nil || body.part == nil || e.Offset+e.Len > body.reader.Size() || body.part.hasAll(body.reader, e.Offset, e.Len) {
			continue
		}
		size := body.reader.FrameSize()
		n := &need{body: body, first: int(e.Offset / size), end: int((e.Offset + e.Len + size - 1) / size)}
		if k := len(needs); k > 0 && needs[k-1].body == body && n.first >= needs[k-1].first && n.first <= needs[k-1].end {
			needs[k-1].end = max(needs[k-1].end, n.end)
			continue
		}
		needs = append(needs, n)
	}
	if len(needs) == 0 {
		return "", nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxFetches)
	for _, n := range needs {
		g.Go(func() (err error) {
			n.from, err = n.body.part.bring(ctx, n.body.reader, n.first, n.end)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	for _, n := range needs {
		from = farther(from, n.from)
	}
	return from, nil
}

// maxFetches bounds the fetches of one read that are under way together.
const maxFetches = 8

// maxJoined bounds how many runs Run looks at.
const maxJoined = 256

// Run tells how far the run that off lies in goes on (>0 unless off is Size) and whether it is known to be all zeros. Neighbouring
// runs that are not zeros count as one, within bounds.
func (v *View) Run(off int64) (length int64, zero bool) {
	joined := 0
	for e := range v.header.Extents(off, v.Size()) {
		if length == 0 {
			zero = e.Build == 0
		} else if zero || e.Build == 0 || joined == maxJoined {
			break
		}
		length += e.Len
		joined++
	}
	return length, zero
}

// maxLocalFrames is how many frames are read in well under a millisecond.
const maxLocalFrames = 8

// Local tells whether ReadAt of that range would answer in well under a millisecond, waiting for no network.
func (v *View) Local(off, length int64) bool {
	frames := int64(0)
	for e := range v.header.Extents(off, length) {
		if e.Build == 0 {
			continue
		}
		frames += 1 + e.Len/buildfmt.DefaultFrameSize
		if frames > maxLocalFrames || !v.builds[e.Build-1].local(e.Offset, e.Len) {
			return false
		}
	}
	return true
}
