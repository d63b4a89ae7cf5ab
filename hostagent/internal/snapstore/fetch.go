package snapstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
)

// Fetcher reads what other hosts and the registry have. It is safe for concurrent use.
type Fetcher interface {
	// Find finds the record of a snapshot; machine.ErrSnapshotNotFound. From then on the snapshot stays readable; done says that
	// it is on this host now, or that it will not be.
	Find(ctx context.Context, id string) (r *Record, done func(), err error)
	// Record is Find for a snapshot that is on this host already, of which nothing is promised.
	Record(ctx context.Context, id string) (*Record, error)
	// ReadAt fills all of p from an object of a snapshot at off, and tells whether it came from a "peer" or the "registry". What
	// it returns is verified by the caller: bytes that come from a peer and turn out damaged are asked for once more, with
	// distrust set, and should then come from elsewhere.
	ReadAt(ctx context.Context, snapshotID string, o Object, p []byte, off int64, distrust bool) (from string, err error)
}

// partial is a build of elsewhere: a file in which every range that was fetched lies in its place, and a map that says which
// did. Nothing is synced: what a crash of the host loses fails its check and is fetched again.
type partial struct {
	build *build
	file  *os.File
	marks *os.File // byte 0: prefix, index and footer are there; byte i+1: frame i is
	ready atomic.Bool

	mu      sync.Mutex    // guards all below
	have    []byte        // the content of marks
	flights map[int]*pull // by frame
	missing int
}

// pull is a fetch under way; all but done may be read once that is closed.
type pull struct {
	done chan struct{}
	from string
	err  error
	// dropped: who fetched it did not want it any more.
	dropped bool
}

// maxPull is the most that is fetched at once, bytes.
const maxPull = 1 << 20

// FetchUnit divides a build, bytes: what is fetched at once lies in one unit, by where its first frame begins. So hosts that fetch for each
// other, unit by unit, never wait for each other in a circle.
const FetchUnit = 4 << 20

// sharedKey is the key of Shared in a context.
type sharedKey struct{}

// Shared tells a Fetcher that a range is of frames, of which other hosts that have the build open can fetch what they lack.
func Shared(ctx context.Context) bool { return ctx.Value(sharedKey{}) != nil }

// maxMarks bounds the map that is read, bytes.
const maxMarks = buildfmt.MaxFrames + 1

const (
	partSuffix  = ".part"
	marksSuffix = ".have"
)

// openPartial opens what was fetched of a build, and fetches its index if need be.
func (b *build) openPartial(ctx context.Context) (_ *buildBody, err error) {
	path := b.store.buildPath(b.ID)
	p := &partial{build: b, flights: map[int]*pull{}}
	if p.file, err = os.OpenFile(path+partSuffix, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.file.Close(), p.close())
		}
	}()
	if p.marks, err = os.OpenFile(path+marksSuffix, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err = p.file.Truncate(b.Data.Size); err != nil {
		return nil, err
	}
	if p.have, err = readBounded(path+marksSuffix, maxMarks); err != nil {
		return nil, err
	}
	p.ready.Store(len(p.have) > 0 && p.have[0] == 1)
	r, err := buildfmt.Open(ctx, p, b.Data.Size, b.ID)
	if errors.Is(err, buildfmt.ErrCorrupt) {
		// Either what was fetched once is lost, or what a peer sends is wrong.
		p.have = nil
		p.ready.Store(false)
		r, err = buildfmt.Open(ctx, distrusting{p}, b.Data.Size, b.ID)
	}
	if err != nil {
		return nil, err
	}
	return &buildBody{file: p.file, reader: r, part: p}, p.adopt(r)
}

// adopt makes the map fit the build, whose index is known now.
func (p *partial) adopt(r *buildfmt.Reader) error {
	frames := r.Frames() + 1
	if len(p.have) != frames {
		p.have = make([]byte, frames)
		if err := p.marks.Truncate(0); err != nil {
			return err
		}
		if err := p.marks.Truncate(int64(frames)); err != nil {
			return err
		}
	}
	for i := range r.Frames() {
		if r.Frame(i).Stored > 0 && p.have[i+1] != 1 {
			p.missing++
		}
	}
	p.ready.Store(true)
	return p.mark(0, 1)
}

func (p *partial) whole() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.missing == 0
}

func (p *partial) close() error {
	if p.marks == nil {
		return nil
	}
	return p.marks.Close()
}

func (p *partial) mark(at int, value byte) error {
	p.have[at] = value
	_, err := p.marks.WriteAt([]byte{value}, int64(at))
	return err
}

// ReadAt makes it a buildfmt.Source: of what was fetched, or before the index is known of what has to be.
func (p *partial) ReadAt(ctx context.Context, buf []byte, off int64) (string, error) {
	if !p.ready.Load() {
		return p.fetch(ctx, buf, off, false)
	}
	_, err := p.file.ReadAt(buf, off)
	return fromLocal, err
}

// distrusting reads from elsewhere than where the first answer came from.
type distrusting struct{ *partial }

func (d distrusting) ReadAt(ctx context.Context, buf []byte, off int64) (string, error) {
	if d.ready.Load() {
		return d.partial.ReadAt(ctx, buf, off)
	}
	return d.fetch(ctx, buf, off, true)
}

// fetch brings a range and puts it in its place.
func (p *partial) fetch(ctx context.Context, buf []byte, off int64, distrust bool) (from string, err error) {
	b := p.build
	if from, err = b.store.conf.Fetcher.ReadAt(ctx, b.snapshot, b.Data, buf, off, distrust); err != nil {
		return "", err
	}
	_, err = p.file.WriteAt(buf, off)
	return from, err
}

func (p *partial) hasAll(r *buildfmt.Reader, off, length int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := off / r.FrameSize(); i < int64(r.Frames()) && i*r.FrameSize() < off+length; i++ {
		if !p.hasLocked(r, int(i)) {
			return false
		}
	}
	return true
}

// hasStored tells whether a range of the file is there.
func (p *partial) hasStored(r *buildfmt.Reader, off, length int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, end := storedFrames(r, off, length); i < end; i++ {
		if !p.hasLocked(r, i) {
			return false
		}
	}
	return true
}

// storedFrames are the frames, from first to before end, that a range of the file has some of.
func storedFrames(r *buildfmt.Reader, off, length int64) (first, end int) {
	first = sort.Search(r.Frames(), func(i int) bool { f := r.Frame(i); return f.Offset+int64(f.Stored) > off })
	for end = first; end < r.Frames() && r.Frame(end).Offset < off+length; end++ {
	}
	return first, end
}

func (p *partial) hasLocked(r *buildfmt.Reader, i int) bool {
	return p.have[i+1] == 1 || r.Frame(i).Stored == 0
}

// readFrame reads frame i, which it fetches if need be.
func (p *partial) readFrame(ctx context.Context, r *buildfmt.Reader, i int, dst []byte) (from string, err error) {
	if from, err = p.bring(ctx, r, i, i+1); err != nil {
		return "", err
	}
	_, err = r.ReadFrame(ctx, i, dst)
	if !errors.Is(err, buildfmt.ErrCorrupt) {
		return from, err
	}
	p.build.store.log.Warn("a fetched frame is damaged on the disk and is fetched again", "build_id", p.build.ID, "frame", i, "error", err)
	if err := p.lose(i); err != nil {
		return "", err
	}
	if from, err = p.bring(ctx, r, i, i+1); err != nil {
		return "", err
	}
	_, err = r.ReadFrame(ctx, i, dst)
	return from, err
}

func (p *partial) lose(i int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have[i+1] == 1 {
		p.missing++
	}
	return p.mark(i+1, 0)
}

// bring fetches what is missing of the frames from first to end, each once whoever asks. Neighbours are fetched together.
func (p *partial) bring(ctx context.Context, r *buildfmt.Reader, first, end int) (from string, err error) {
	from = fromLocal
	for first < end {
		f, wait, n := p.claim(r, first, end)
		switch {
		case f == nil:
		case !wait:
			f.from, f.err = p.pull(ctx, r, first, n)
			f.dropped = f.err != nil && ctx.Err() != nil
			if e := p.land(r, first, n, f); f.err == nil {
				f.err = e
			}
			close(f.done)
		default:
			select {
			case <-f.done:
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
			if f.dropped && ctx.Err() == nil {
				continue
			}
		}
		if f != nil {
			if f.err != nil {
				return "", f.err
			}
			from = farther(from, f.from)
		}
		first = n
	}
	return from, nil
}

// claim looks at frames from first on. Nil: those up to next are there. Else they are to be waited for or, if it is not wait, the
// caller's to fetch.
func (p *partial) claim(r *buildfmt.Reader, first, end int) (f *pull, wait bool, next int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hasLocked(r, first) {
		return nil, false, first + 1
	}
	if f := p.flights[first]; f != nil {
		return f, true, first + 1
	}
	f = &pull{done: make(chan struct{})}
	size, unit := 0, r.Frame(first).Offset/FetchUnit
	for next = first; next < end && !p.hasLocked(r, next) && p.flights[next] == nil; next++ {
		if r.Frame(next).Offset/FetchUnit != unit {
			break
		}
		if size += r.Frame(next).Stored; size > maxPull && next > first {
			break
		}
		p.flights[next] = f
	}
	return f, false, next
}

// pull fetches frames that lie side by side, verifies them, and only then puts them in their place.
func (p *partial) pull(ctx context.Context, r *buildfmt.Reader, first, end int) (from string, err error) {
	b, start := p.build, r.Frame(first).Offset
	last := r.Frame(end - 1)
	buf := make([]byte, last.Offset+int64(last.Stored)-start)
	ctx = context.WithValue(ctx, sharedKey{}, true)
	for _, distrust := range []bool{false, true} {
		if from, err = b.store.conf.Fetcher.ReadAt(ctx, b.snapshot, b.Data, buf, start, distrust); err != nil {
			return "", fmt.Errorf("build %s, frames %d to %d: %w", b.ID, first, end-1, err)
		}
		if err = checkFrames(r, first, end, buf); err == nil {
			break
		}
		b.store.log.Warn("fetched frames are damaged", "build_id", b.ID, "from", from, "error", err)
	}
	if err == nil {
		_, err = p.file.WriteAt(buf, start)
	}
	return from, err
}

func checkFrames(r *buildfmt.Reader, first, end int, buf []byte) error {
	start := r.Frame(first).Offset
	for i := first; i < end; i++ {
		f := r.Frame(i)
		if err := r.Check(i, buf[f.Offset-start:][:f.Stored]); err != nil {
			return err
		}
	}
	return nil
}

// land takes a pull off the list and notes what it brought. The build is whole with the last frame.
func (p *partial) land(r *buildfmt.Reader, first, end int, f *pull) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := first; i < end; i++ {
		delete(p.flights, i)
	}
	if f.err != nil {
		return nil
	}
	for i := first; i < end; i++ {
		if err := p.mark(i+1, 1); err != nil {
			return err
		}
		if r.Frame(i).Stored > 0 {
			p.missing--
		}
	}
	if p.missing == 0 {
		p.build.store.finish(p.build)
	}
	return nil
}
