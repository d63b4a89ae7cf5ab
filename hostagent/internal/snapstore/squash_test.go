package snapstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/snapstore"
)

func TestALongChainIsSquashedInTheBackground(t *testing.T) {
	const chain = 4
	w := newWorld(t, func(c *snapstore.Config) { c.MaxChain = chain })
	ctx := context.Background()
	r := rand.New(rand.NewPCG(1, 1))
	g := w.boot(8<<20, imageSize)
	for i := range chain + 1 {
		g.write(r, 10, 20)
		id := fmt.Sprintf("snap_%d", i)
		g.save(id)
		g.end()
		g = w.resume(id, g)
	}
	last := fmt.Sprintf("snap_%d", chain)
	eventually(t, func() bool { return slices.Contains(w.tree(), "snapshots/"+last+"/squash/squash.json") })
	before, err := w.store.Record(last)
	check(t, err)

	// The snapshot itself is what it was: the registry may have it.
	g.end()
	w.restart()
	g = w.resume(last, g)
	after, err := w.store.Record(last)
	check(t, err)
	if len(after.Builds) != len(before.Builds) || after.MemoryHeader != before.MemoryHeader {
		t.Errorf("the record has changed: %+v, was %+v", after, before)
	}
	// What is made of it names few builds, and the many are gone once the snapshots are.
	g.write(r, 2, 5)
	g.save("snap_next")
	g.end()
	next := w.resume("snap_next", g)
	man := next.base.Manifest()
	if len(man.MemoryBuilds) > chain || len(man.DiskBuilds) > chain {
		t.Errorf("the next generation names %d and %d builds", len(man.MemoryBuilds), len(man.DiskBuilds))
	}
	next.end()
	for _, id := range w.store.Local() {
		if id != "snap_next" {
			check(t, w.store.Remove(ctx, id))
		}
	}
	want := append(slices.Clone(man.MemoryBuilds), man.DiskBuilds...)
	for _, b := range w.builds() {
		if !slices.Contains(want, b) {
			// The image's own build stays as long as the image.
			if img, err := w.store.OpenStock(ctx, "stock"); err != nil || img.Manifest().DiskBuilds[0] != b {
				t.Errorf("build %s is left, and nothing names it", b)
			} else {
				img.Release()
			}
		}
	}
	w.restart()
	w.resume("snap_next", g).end()
}

func TestASquashThatIsDamagedIsDoneWithout(t *testing.T) {
	const chain = 2
	w := newWorld(t, func(c *snapstore.Config) { c.MaxChain = chain })
	r := rand.New(rand.NewPCG(2, 1))
	g := w.boot(4<<20, imageSize)
	for i := range chain + 1 {
		g.write(r, 5, 10)
		id := fmt.Sprintf("snap_%d", i)
		g.save(id)
		g.end()
		g = w.resume(id, g)
	}
	last := fmt.Sprintf("snap_%d", chain)
	eventually(t, func() bool { return slices.Contains(w.tree(), "snapshots/"+last+"/squash/squash.json") })
	g.end()
	w.stop()
	damageFile(t, w, "snapshots/"+last+"/squash/memory.hdr")
	w.start()
	if slices.Contains(w.tree(), "snapshots/"+last+"/squash") {
		t.Error("the damaged squash is left")
	}
	g = w.resume(last, g)
	g.write(r, 5, 10)
	g.save("snap_next")
	g.end()
	w.resume("snap_next", g).end()
	for _, id := range w.store.Local() {
		check(t, w.store.Remove(context.Background(), id))
	}
	eventually(t, func() bool { return len(w.builds()) == 1 && !strings.Contains(strings.Join(w.tree(), " "), "squash") })
}
