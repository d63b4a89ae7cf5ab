package snapstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
)

// link is a Fetcher that reads from another host's store.
type link struct {
	far *snapstore.Store

	mu    sync.Mutex // guards all below
	bytes map[string]int64
	calls map[string]int
	// spoil changes what a peer sends; distrust makes answers come from the registry, unspoilt.
	spoil func(key string, p []byte)
	// hold is waited for in each call, if set.
	hold chan struct{}
	cut  bool
}

func newLink(far *snapstore.Store) *link {
	return &link{far: far, bytes: map[string]int64{}, calls: map[string]int{}}
}

func (l *link) Find(_ context.Context, id string) (*snapstore.Record, func(), error) {
	r, err := l.far.Record(id)
	return r, func() {}, err
}

func (l *link) Record(_ context.Context, id string) (*snapstore.Record, error) {
	l.mu.Lock()
	cut := l.cut
	l.mu.Unlock()
	if cut {
		return nil, errors.New("the network is cut")
	}
	return l.far.Record(id)
}

func (l *link) ReadAt(ctx context.Context, _ string, o snapstore.Object, p []byte, off int64, distrust bool) (string, error) {
	l.mu.Lock()
	l.bytes[o.Key] += int64(len(p))
	l.calls[o.Key]++
	hold, spoil, cut := l.hold, l.spoil, l.cut
	l.mu.Unlock()
	if cut {
		return "", errors.New("the network is cut")
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	f, err := l.far.OpenObject(o.Key)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := f.ReadAt(p, off); err != nil {
		return "", err
	}
	if distrust {
		return "registry", nil
	}
	if spoil != nil {
		spoil(o.Key, p)
	}
	return "peer", nil
}

func (l *link) set(do func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	do()
}

func (l *link) total(prefix string) (bytes int64, calls int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, n := range l.bytes {
		if strings.HasPrefix(key, prefix) {
			bytes += n
			calls += l.calls[key]
		}
	}
	return bytes, calls
}

// pair is a host that has snapshot snap_1 of the guest, and one that has not.
func pair(t *testing.T) (near *world, l *link, g *guest) {
	t.Helper()
	far := newWorld(t, nil)
	g = far.boot(8<<20, imageSize)
	g.write(rand.New(rand.NewPCG(1, 1)), 60, 20)
	g.save("snap_1")
	g.end()
	l = newLink(far.store)
	near = newWorld(t, func(c *snapstore.Config) { c.Fetcher, c.Images = l, nil })
	return near, l, g
}

func TestASnapshotOfElsewhereIsFetchedByNeed(t *testing.T) {
	near, l, g := pair(t)
	ctx := context.Background()
	if _, err := near.store.Open(ctx, "snap_2"); !errors.Is(err, machine.ErrSnapshotNotFound) {
		t.Errorf("a snapshot that is nowhere: %v", err)
	}
	s, err := near.store.OpenSnapshot(ctx, "snap_1")
	check(t, err)
	opened, _ := l.total("builds/")
	p := make([]byte, 64<<10)
	off := int64(0)
	for n, zero := s.Memory().Run(off); zero; n, zero = s.Memory().Run(off) {
		off += n
	}
	p = p[:page]
	if s.Memory().Local(off, page) {
		t.Error("a page that is elsewhere is said to be local")
	}
	from, err := s.Memory().ReadAt(ctx, p, off)
	check(t, err)
	if from != "peer" || !bytes.Equal(p, g.memory[off:off+page]) {
		t.Errorf("page came from %q", from)
	}
	one, calls := l.total("builds/")
	if one-opened > 64<<10 {
		t.Errorf("%d bytes were fetched for one page, after %d at opening", one-opened, opened)
	}
	for range 3 {
		if from, err = s.Memory().ReadAt(ctx, p, off); err != nil || from != "local" || !s.Memory().Local(off, page) {
			t.Errorf("the second time: from %q, error %v", from, err)
		}
	}
	if _, again := l.total("builds/"); again != calls {
		t.Errorf("%d calls for what is there", again-calls)
	}
	s.Release()
	// What was fetched stays over a restart of the agent.
	near.restart()
	s, err = near.store.OpenSnapshot(ctx, "snap_1")
	check(t, err)
	if from, err = s.Memory().ReadAt(ctx, p, off); err != nil || from != "local" || !bytes.Equal(p, g.memory[off:off+page]) {
		t.Errorf("after the restart: from %q, error %v", from, err)
	}
	s.Release()
	near.resume("snap_1", g).end()
	fetched, _ := l.total("builds/")
	if stored := storedBuilds(t, l); fetched > stored+stored/20 {
		t.Errorf("%d bytes were fetched of builds of %d", fetched, stored)
	}
	// Once it is here as a whole, nobody else is needed.
	eventually(t, func() bool {
		return !slices.ContainsFunc(near.builds(), func(f string) bool { return strings.Contains(f, ".") })
	})
	l.set(func() { l.cut = true })
	near.restart()
	near.resume("snap_1", g).end()
	check(t, near.store.Remove(ctx, "snap_1"))
	if left := near.builds(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func storedBuilds(t *testing.T, l *link) (n int64) {
	t.Helper()
	r, err := l.far.Record("snap_1")
	check(t, err)
	for _, b := range r.Builds {
		n += b.Data.Size
	}
	return n
}

func TestEachFrameIsFetchedOnceHoweverManyWantIt(t *testing.T) {
	near, l, g := pair(t)
	s, err := near.store.OpenSnapshot(context.Background(), "snap_1")
	check(t, err)
	defer s.Release()
	before, _ := l.total("builds/")
	gate := make(chan struct{})
	l.set(func() { l.hold = gate })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			p := make([]byte, len(g.memory))
			if _, err := s.Memory().ReadAt(context.Background(), p, 0); err != nil || firstDifference(p, g.memory) >= 0 {
				t.Errorf("read: %v", err)
			}
		})
	}
	// One who gives up takes nobody with him, even if it was he who began.
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		if _, err := s.Memory().ReadAt(ctx, make([]byte, len(g.memory)), 0); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the one who gave up: %v", err)
		}
	})
	cancel()
	close(gate)
	wg.Wait()
	after, _ := l.total("builds/")
	r, err := near.store.Record("snap_1")
	check(t, err)
	for _, b := range r.Builds {
		if b.Kind == "memory" && after-before > b.Data.Size+1<<20 {
			t.Errorf("%d bytes were fetched of a build of %d", after-before, b.Data.Size)
		}
	}
}

func TestWhatAPeerSpoilsIsFetchedFromTheRegistry(t *testing.T) {
	near, l, g := pair(t)
	l.set(func() {
		l.spoil = func(_ string, p []byte) { p[len(p)/2] ^= 1 }
	})
	again := near.resume("snap_1", g)
	again.end()
	// Where the registry has nothing better, it is an error and never data.
	near2 := newWorld(t, func(c *snapstore.Config) { c.Fetcher, c.Images = always{l}, nil })
	_, err := near2.store.OpenSnapshot(context.Background(), "snap_1")
	if !errors.Is(err, machine.ErrDamaged) {
		t.Errorf("all sources spoilt: %v", err)
	}
	if left := near2.tree(); len(left) != 4 {
		t.Errorf("left: %v", left)
	}
}

// always spoils, whoever is asked.
type always struct{ *link }

func (a always) ReadAt(ctx context.Context, id string, o snapstore.Object, p []byte, off int64, _ bool) (string, error) {
	return a.link.ReadAt(ctx, id, o, p, off, false)
}

func TestAFetchedFrameThatIsLostIsFetchedAgain(t *testing.T) {
	near, _, g := pair(t)
	s, err := near.store.OpenSnapshot(context.Background(), "snap_1")
	check(t, err)
	p := make([]byte, 1<<20)
	_, err = s.Memory().ReadAt(context.Background(), p, 0)
	check(t, err)
	for _, f := range near.builds() {
		if strings.HasSuffix(f, ".part") {
			part, err := os.OpenFile(filepath.Join(near.conf.Dir, "builds", f), os.O_WRONLY, 0)
			check(t, err)
			_, err = part.WriteAt(make([]byte, 256<<10), 0)
			check(t, err)
			check(t, part.Close())
		}
	}
	s.Release()
	near.restart()
	near.resume("snap_1", g).end()
}

func TestASandboxOfElsewhereIsPausedHere(t *testing.T) {
	near, l, g := pair(t)
	here := near.resume("snap_1", g)
	here.write(rand.New(rand.NewPCG(9, 9)), 10, 10)
	here.save("snap_here")
	here.end()
	check(t, near.store.Remove(context.Background(), "snap_1"))
	near.resume("snap_here", here).end()
	// A third host fetches from the second one, which has passed on what the record says of builds that it did not make.
	third := newWorld(t, func(c *snapstore.Config) { c.Fetcher, c.Images = newLink(near.store), nil })
	eventually(t, func() bool {
		return !slices.ContainsFunc(near.builds(), func(f string) bool { return strings.Contains(f, ".") })
	})
	third.resume("snap_here", here).end()
	_ = l
}

func TestAFetchThatFailsLeavesNothingAndCanBeRepeated(t *testing.T) {
	near, l, g := pair(t)
	before := near.tree()
	l.set(func() { l.cut = true })
	if _, err := near.store.Open(context.Background(), "snap_1"); err == nil || errors.Is(err, machine.ErrDamaged) {
		t.Errorf("open without a network: %v", err)
	}
	if after := near.tree(); !slices.Equal(after, before) {
		t.Errorf("left: %v", after)
	}
	l.set(func() { l.cut = false })
	s, err := near.store.OpenSnapshot(context.Background(), "snap_1")
	check(t, err)
	defer s.Release()
	l.set(func() { l.cut = true })
	if _, err := s.Memory().ReadAt(context.Background(), make([]byte, 1<<20), 0); err == nil || !strings.Contains(err.Error(), "the network is cut") {
		t.Errorf("read without a network: %v", err)
	}
	l.set(func() { l.cut = false })
	readView(t, s.Memory(), make([]byte, len(g.memory)))
}

func TestAnExportHasEveryObjectWithItsChecksum(t *testing.T) {
	near, l, g := pair(t)
	x, err := l.far.Export("snap_1")
	check(t, err)
	check(t, l.far.Remove(context.Background(), "snap_1")) // pinned: it stays until Close
	var keys []string
	for _, o := range x.Objects {
		f, err := x.Open(o.Key)
		check(t, err)
		h := sha256.New()
		n, err := io.Copy(h, f.Reader(0))
		check(t, err)
		check(t, f.Close())
		if n != o.Size || snapstore.Sum(h.Sum(nil)) != o.SHA256 {
			t.Errorf("object %s has %d bytes with SHA-256 %x; recorded are %d and %s", o.Key, n, h.Sum(nil), o.Size, o.SHA256)
		}
		keys = append(keys, o.Key[:strings.LastIndex(o.Key, "/")])
	}
	if want := fmt.Sprint([]string{"snapshots/snap_1", "snapshots/snap_1", "snapshots/snap_1", "snapshots/snap_1", "builds", "builds", "builds"}); fmt.Sprint(keys) != want {
		t.Errorf("keys: %v, want %v", keys, want)
	}
	x.Close()
	for _, key := range []string{"builds/../x", "snapshots/snap_1/state", "snapshots/../state", "builds/" + strings.Repeat("0", 32), "x"} {
		if _, err := l.far.OpenObject(key); !errors.Is(err, snapstore.ErrNotHere) {
			t.Errorf("object %s: %v", key, err)
		}
	}
	_, _ = near, g
}

func TestAPeerServesTheRangesThatItHas(t *testing.T) {
	near, _, _ := pair(t)
	s, err := near.store.OpenSnapshot(context.Background(), "snap_1")
	check(t, err)
	defer s.Release()
	r, err := near.store.Record("snap_1")
	check(t, err)
	for _, b := range r.Builds {
		f, err := near.store.OpenObject(b.Data.Key)
		check(t, err)
		if _, err := f.ReadAt(make([]byte, 1000), 32); !errors.Is(err, snapstore.ErrNotHere) {
			t.Errorf("a range that was not fetched: %v", err)
		}
		if _, err := f.ReadAt(make([]byte, 48), b.Data.Size-48); err != nil {
			t.Errorf("the footer: %v", err)
		}
		check(t, f.Close())
	}
	readView(t, s.Memory(), make([]byte, s.Memory().Size()))
	if x, err := near.store.Export("snap_1"); err != nil {
		t.Error(err)
	} else {
		if _, err := x.Open(r.Builds[len(r.Builds)-1].Data.Key); !errors.Is(err, snapstore.ErrNotHere) {
			t.Errorf("export of a build that is not here as a whole: %v", err)
		}
		x.Close()
	}
}
