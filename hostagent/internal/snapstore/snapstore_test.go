package snapstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
)

func TestASavedGuestIsWhatItWas(t *testing.T) {
	w := newWorld(t, nil)
	r := rand.New(rand.NewPCG(1, 1))
	g := w.boot(16<<20, imageSize+4<<20)
	g.write(r, 50, 40)
	stats := g.save("snap_1")
	if stats.MemoryDirty != int64(len(g.dirty))*page || stats.MemoryWritten > stats.MemoryDirty || stats.MemoryWritten == 0 || stats.DiskWritten > stats.DiskDirty {
		t.Errorf("stats are not those of %d dirty pages: %+v", len(g.dirty), stats)
	}
	g.end()
	again := w.resume("snap_1", g)
	man := again.base.Manifest()
	if man.Generation != 0 || len(man.MemoryBuilds) != 1 || len(man.DiskBuilds) != 2 || man.ImageID == "" {
		t.Errorf("manifest: %+v", man)
	}
	if ws := again.base.WorkingSet(); !slices.Equal(ws, []int64{0, page}) {
		t.Errorf("working set: %v", ws)
	}
	again.end()
}

func TestASecondPauseWritesOnlyWhatChanged(t *testing.T) {
	w := newWorld(t, nil)
	r := rand.New(rand.NewPCG(2, 1))
	g := w.boot(16<<20, imageSize)
	g.write(r, 100, 40)
	g.save("snap_1")
	g.end()
	g = w.resume("snap_1", g)
	copy(g.memory[5*page:], random(r, 3*page))
	g.dirty = map[int64]bool{5: true, 6: true, 7: true}
	stats := g.save("snap_2")
	g.end()
	if stats.MemoryWritten != 3*page || stats.DiskWritten != 0 || stats.Stored > 64<<10 {
		t.Errorf("second pause of three dirty pages: %+v", stats)
	}
	w.resume("snap_2", g).end()
}

func TestFiftyGenerations(t *testing.T) {
	const chain = 8
	w := newWorld(t, func(c *snapstore.Config) { c.MaxChain = chain })
	r := rand.New(rand.NewPCG(3, 1))
	g := w.boot(8<<20, imageSize)
	for i := range 50 {
		g.write(r, 6, 30)
		id := fmt.Sprintf("snap_%d", i)
		g.save(id)
		g.end()
		next := w.resume(id, g)
		if i > 0 {
			check(t, w.store.Remove(context.Background(), fmt.Sprintf("snap_%d", i-1)))
		}
		g = next
		for _, v := range []*snapstore.View{g.base.Memory(), g.base.Disk()} {
			h := v.Header()
			// Past 4*chain a snapshot waits for its squash.
			if len(h.Builds) > 4*chain+1 || len(h.Runs) > int(v.Size()/page) {
				t.Fatalf("generation %d: header names %d builds in %d runs", i, len(h.Builds), len(h.Runs))
			}
		}
		if i == 25 {
			id := g.base.Manifest().ID
			g.end()
			w.restart()
			g = w.resume(id, g)
		}
	}
	last := g.base.Manifest()
	g.end()
	eventually(t, func() bool { return len(w.builds()) <= 10*chain })
	check(t, w.store.Remove(context.Background(), last.ID))
	eventually(t, func() bool { return len(w.builds()) == 1 && w.removed.Load() == 50 })
	if left := w.store.Local(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// eventually waits for something that happens in the background.
func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); {
		if time.Now().After(end) {
			t.Fatal("it does not come to pass")
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestManyGuestsOfOneSnapshotDoNotSeeEachOther(t *testing.T) {
	w := newWorld(t, nil)
	r := rand.New(rand.NewPCG(4, 1))
	g := w.boot(8<<20, imageSize)
	g.write(r, 20, 20)
	g.save("snap_base")
	a, b := w.resume("snap_base", g), w.resume("snap_base", g)
	a.write(r, 20, 20)
	b.write(r, 20, 20)
	a.save("snap_a")
	b.save("snap_b")
	w.resume("snap_base", g).end()
	w.resume("snap_a", a).end()
	w.resume("snap_b", b).end()
	for _, g := range []*guest{g, a, b} {
		g.end()
	}
	// Builds that others name stay.
	check(t, w.store.Remove(context.Background(), "snap_base"))
	w.resume("snap_a", a).end()
}

func TestWhatIsPinnedIsRemovedWhenReleased(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(8<<20, imageSize)
	g.write(rand.New(rand.NewPCG(5, 1)), 20, 20)
	g.save("snap_1")
	g.end()
	base, err := w.store.OpenSnapshot(context.Background(), "snap_1")
	check(t, err)
	check(t, w.store.Remove(context.Background(), "snap_1"))
	if _, err := w.store.Open(context.Background(), "snap_1"); !errors.Is(err, machine.ErrSnapshotNotFound) {
		t.Errorf("open after removal: %v", err)
	}
	if local := w.store.Local(); len(local) != 0 {
		t.Errorf("local after removal: %v", local)
	}
	readView(t, base.Memory(), make([]byte, base.Memory().Size()))
	base.Release()
	base.Release()
	if n := len(w.builds()); n != 1 {
		t.Errorf("%d builds are left; only the image's should be", n)
	}
	check(t, w.store.Remove(context.Background(), "snap_1"))
}
