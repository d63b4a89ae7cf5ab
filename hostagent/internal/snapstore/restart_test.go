package snapstore_test

import (
	"context"
	"errors"
	"fmt"
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

func TestANewAgentFindsSnapshotsAndSweepsWhatIsHalfMade(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(8<<20, imageSize)
	g.write(rand.New(rand.NewPCG(1, 1)), 20, 20)
	g.save("snap_1")
	before := w.tree()
	// An agent that is killed in the middle leaves a draft and a build that nothing names.
	d, err := w.store.Draft(context.Background(), g.manifest("snap_2"), &memoryPart{g: g}, &diskPart{g: g})
	check(t, err)
	check(t, os.WriteFile(filepath.Join(w.conf.Dir, "builds", strings.Repeat("ab", 16)), []byte("x"), 0o600))
	w.restart()
	if after := w.tree(); !slices.Equal(after, before) {
		t.Errorf("after the restart: %v\nbefore: %v", after, before)
	}
	if local := w.store.Local(); !slices.Equal(local, []string{"snap_1"}) {
		t.Errorf("local: %v", local)
	}
	g.end()
	w.resume("snap_1", g).end()
	_ = d
}

func TestBuildsOfASnapshotThatCannotBeReadAreKept(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(8<<20, imageSize)
	g.write(rand.New(rand.NewPCG(2, 1)), 20, 20)
	g.save("snap_1")
	g.end()
	builds := w.builds()
	path := filepath.Join(w.conf.Dir, "snapshots/snap_1/manifest.json")
	good, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, good[1:], 0o600))
	w.restart()
	if _, err := w.store.Open(context.Background(), "snap_1"); !errors.Is(err, machine.ErrDamaged) {
		t.Errorf("open: %v", err)
	}
	if _, err := w.store.Record("snap_1"); !errors.Is(err, machine.ErrDamaged) {
		t.Errorf("record: %v", err)
	}
	if now := w.builds(); !slices.Equal(now, builds) {
		t.Errorf("builds: %v, were %v", now, builds)
	}
	check(t, os.WriteFile(path, good, 0o600))
	w.resume("snap_1", g).end()
	check(t, w.store.Remove(context.Background(), "snap_1"))
	if n := len(w.builds()); n != 1 {
		t.Errorf("%d builds are left; only the image's should be", n)
	}
}

func TestAnImageIsConvertedOnce(t *testing.T) {
	w := newWorld(t, nil)
	check(t, w.store.PrepareImages(context.Background()))
	before := w.tree()
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			b, err := w.store.OpenImage(context.Background(), "stock")
			if err == nil {
				ids[i] = b.Manifest().ImageID
				b.Release()
			}
		})
	}
	wg.Wait()
	w.restart()
	b, err := w.store.OpenStock(context.Background(), ids[0])
	check(t, err)
	if b.StatePath() != "" || b.Memory() != nil || b.Manifest().DiskBytes != imageSize || b.Manifest().Image != "stock" {
		t.Errorf("image: %+v", b.Manifest())
	}
	b.Release()
	if after := w.tree(); !slices.Equal(after, before) || slices.Contains(ids, "") {
		t.Errorf("tree: %v, was %v; ids %v", after, before, ids)
	}
	// A file that only looks new is the same image; one of other content replaces it.
	path := filepath.Join(w.dir, "artifacts", "images", "stock.ext4")
	check(t, os.Chtimes(path, g0, g0))
	check(t, w.store.PrepareImages(context.Background()))
	if after := w.tree(); !slices.Equal(after, before) {
		t.Errorf("tree: %v, was %v", after, before)
	}
	writeImage(t, filepath.Join(w.dir, "artifacts"), "stock", imageSize, 99)
	w.boot(8<<20, imageSize).end()
	if after := w.tree(); len(after) != len(before) || slices.Equal(after, before) {
		t.Errorf("tree: %v, was %v", after, before)
	}
	if _, err := w.store.OpenImage(context.Background(), ids[0]); !errors.Is(err, machine.ErrImageNotFound) {
		t.Errorf("the former image: %v", err)
	}
	if _, err := w.store.OpenImage(context.Background(), "none"); !errors.Is(err, machine.ErrImageNotFound) {
		t.Errorf("no image: %v", err)
	}
}

func TestOpenRemoveAndSaveAtTheSameTime(t *testing.T) {
	w := newWorld(t, func(c *snapstore.Config) { c.MaxChain = 2 })
	g := w.boot(4<<20, imageSize)
	r := rand.New(rand.NewPCG(3, 1))
	g.write(r, 10, 10)
	g.save("snap_base")
	g.end()
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			ctx := context.Background()
			for i := range 20 {
				id := fmt.Sprintf("snap_%d", i%5)
				b, err := w.store.OpenSnapshot(ctx, id)
				if err == nil {
					p := make([]byte, 64<<10)
					if _, err := b.Memory().ReadAt(ctx, p, 0); err != nil {
						t.Errorf("worker %d: read: %v", worker, err)
					}
					b.Release()
				} else if !errors.Is(err, machine.ErrSnapshotNotFound) {
					t.Errorf("worker %d: open: %v", worker, err)
				}
				if worker == 0 {
					if err := w.store.Remove(ctx, id); err != nil {
						t.Errorf("remove: %v", err)
					}
				}
			}
		})
	}
	former := g
	for i := range 20 {
		id := fmt.Sprintf("snap_%d", i%5)
		next := w.resume("snap_base", former)
		next.write(r, 3, 10)
		if _, _, err := next.try(id); err == nil {
			w.cache.Drop(id)
		}
		next.end()
	}
	wg.Wait()
	for i := range 5 {
		check(t, w.store.Remove(context.Background(), fmt.Sprintf("snap_%d", i)))
	}
	check(t, w.store.Remove(context.Background(), "snap_base"))
	eventually(t, func() bool { return len(w.builds()) == 1 })
}
