package snapstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
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

// catalog is what artifacts.json has from now on: files by name.
func (w *world) catalog(files map[string]string) {
	w.t.Helper()
	images := map[string]any{}
	for name, file := range files {
		images[name] = map[string]any{"path": "images/" + file + ".ext4", "disk_mb": imageSize >> 20}
	}
	raw, err := json.Marshal(map[string]any{"images": images})
	check(w.t, err)
	check(w.t, os.WriteFile(filepath.Join(w.dir, "artifacts", "artifacts.json"), raw, 0o644))
}

func TestTwoNamesOfOneImageAreConvertedOnceAndEachKeepsIt(t *testing.T) {
	w := newWorld(t, nil)
	w.catalog(map[string]string{"stock": "stock", "alias": "stock"})
	id := w.stockID()
	open := func() {
		t.Helper()
		for _, name := range []string{"stock", "alias", "stock"} {
			b, err := w.store.OpenStock(context.Background(), name)
			check(t, err)
			if b.Manifest().ImageID != id {
				t.Errorf("%s is %s, want %s", name, b.Manifest().ImageID, id)
			}
			b.Release()
		}
	}
	written := func() os.FileInfo {
		t.Helper()
		st, err := os.Stat(filepath.Join(w.conf.Dir, "images", id, "image.json"))
		check(t, err)
		return st
	}
	open()
	before := written()
	open()
	w.restart()
	open()
	check(t, w.store.PrepareImages(context.Background()))
	if !os.SameFile(before, written()) {
		t.Error("it was converted again")
	}
	// One of the names becomes another image's.
	writeImage(t, filepath.Join(w.dir, "artifacts"), "another", imageSize, 2)
	w.catalog(map[string]string{"stock": "another", "alias": "stock"})
	check(t, w.store.PrepareImages(context.Background()))
	if w.stockID() == id {
		t.Error("it was not replaced")
	}
	kept, err := w.store.OpenStock(context.Background(), "alias")
	check(t, err)
	kept.Release()
	if kept.Manifest().ImageID != id || !os.SameFile(before, written()) {
		t.Error("what the other name has was made anew")
	}
	w.catalog(map[string]string{"stock": "another"})
	check(t, w.store.PrepareImages(context.Background()))
	if n := len(w.builds()); n != 1 {
		t.Errorf("%d builds are left", n)
	}
}

func TestARunningSandboxsImageThatIsDamagedIsConvertedAgainForTheNextAgent(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, *world, string){
		"its description": func(t *testing.T, w *world, id string) {
			check(t, os.WriteFile(filepath.Join(w.conf.Dir, "images", id, "image.json"), []byte("{"), 0o644))
		},
		"its header": func(t *testing.T, w *world, id string) {
			check(t, os.WriteFile(filepath.Join(w.conf.Dir, "images", id, "disk.hdr"), []byte("no header"), 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			g := w.boot(4<<20, imageSize)
			id := g.base.Manifest().ImageID
			spoil(t, w, id)
			w.restart()
			taken, err := w.store.OpenStock(context.Background(), id)
			check(t, err)
			got := make([]byte, len(g.diskData))
			readView(t, taken.Disk(), got)
			if firstDifference(got, g.diskData) >= 0 || taken.Manifest().ImageID != id {
				t.Error("it is another image")
			}
			taken.Release()
			// Another content of the same name is no substitute.
			writeImage(t, filepath.Join(w.dir, "artifacts"), "stock", imageSize, 2)
			spoil(t, w, id)
			w.restart()
			if b, err := w.store.OpenStock(context.Background(), id); err == nil {
				t.Errorf("it was given %s", b.Manifest().ImageID)
				b.Release()
			}
			check(t, g.disk.Discard(context.Background()))
		})
	}
}
