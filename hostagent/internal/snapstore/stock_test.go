package snapstore_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/machine"
)

// stockID is what the catalog's image is now.
func (w *world) stockID() string {
	w.t.Helper()
	b, err := w.store.OpenStock(context.Background(), "stock")
	check(w.t, err)
	defer b.Release()
	return b.Manifest().ImageID
}

func TestAnImageThatIsReplacedStaysWhatItWasForWhoUsesIt(t *testing.T) {
	w := newWorld(t, nil)
	artifacts := filepath.Join(w.dir, "artifacts")
	g := w.boot(4<<20, imageSize)
	first := g.base.Manifest().ImageID
	writeImage(t, artifacts, "stock", imageSize, 2)
	second := w.stockID()
	if second == first {
		t.Fatal("it was not replaced")
	}
	got := make([]byte, len(g.diskData))
	readView(t, g.base.Disk(), got)
	if firstDifference(got, g.diskData) >= 0 {
		t.Error("who uses the former image reads another")
	}
	// Rolled back while somebody uses it, and again.
	writeImage(t, artifacts, "stock", imageSize, 1)
	if now := w.stockID(); now != first {
		t.Errorf("rolled back it is %s, was %s", now, first)
	}
	again := w.boot(4<<20, imageSize)
	g.compare(again)
	again.end()
	writeImage(t, artifacts, "stock", imageSize, 2)
	if now := w.stockID(); now != second {
		t.Errorf("it is %s, was %s", now, second)
	}
	g.end()
	if _, err := w.store.OpenImage(context.Background(), first); !errors.Is(err, machine.ErrImageNotFound) {
		t.Errorf("the former image, which nobody uses: %v", err)
	}
	if n := len(w.builds()); n != 1 {
		t.Errorf("%d builds are left", n)
	}
}

func TestTheNextAgentFindsTheImageThatARunningSandboxIsOf(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(4<<20, imageSize)
	first := g.base.Manifest().ImageID
	// The agent ends without letting go of it, and the image is replaced.
	writeImage(t, filepath.Join(w.dir, "artifacts"), "stock", imageSize, 2)
	w.restart()
	taken, err := w.store.OpenStock(context.Background(), first)
	check(t, err)
	check(t, w.store.PrepareImages(context.Background()))
	got := make([]byte, len(g.diskData))
	readView(t, taken.Disk(), got)
	if firstDifference(got, g.diskData) >= 0 {
		t.Error("it is another image")
	}
	taken.Release()
	check(t, g.disk.Discard(context.Background()))
	if n := len(w.builds()); n != 1 {
		t.Errorf("%d builds are left", n)
	}
}

func TestAnImageWhoseNameTheCatalogHasNoMoreGoesOnceNobodyUsesIt(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(4<<20, imageSize)
	first := g.base.Manifest().ImageID
	writeImage(t, filepath.Join(w.dir, "artifacts"), "another", imageSize, 2) // the only one from now on
	check(t, w.store.PrepareImages(context.Background()))
	got := make([]byte, len(g.diskData))
	readView(t, g.base.Disk(), got)
	if firstDifference(got, g.diskData) >= 0 {
		t.Error("who uses it reads another")
	}
	g.end()
	if _, err := w.store.OpenImage(context.Background(), first); !errors.Is(err, machine.ErrImageNotFound) {
		t.Errorf("nobody uses it: %v", err)
	}
	if n := len(w.builds()); n != 1 {
		t.Errorf("%d builds are left", n)
	}
}
