package snapstore_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/image"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
)

// TestTheRealImagesAreReadAsTheyAre compares the images that guest-build has made with what the store makes of them.
func TestTheRealImagesAreReadAsTheyAre(t *testing.T) {
	dir := os.Getenv("COVEY_ARTIFACTS")
	if dir == "" {
		const say = "COVEY_ARTIFACTS is not set: run `go run ./guest/cmd/guest-build -out DIR` and set it to DIR"
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
			t.Fatal(say)
		}
		t.Skip(say)
	}
	catalog, err := image.NewCatalog(dir)
	check(t, err)
	s, err := snapstore.New(snapstore.Config{Dir: t.TempDir(), Images: catalog, Log: slog.New(slog.DiscardHandler)})
	check(t, err)
	defer s.Close()
	names, err := catalog.Names()
	check(t, err)
	for _, name := range names {
		began := time.Now()
		b, err := s.OpenStock(context.Background(), name)
		check(t, err)
		t.Logf("image %s: id %s, converted in %v", name, b.Manifest().ImageID, time.Since(began))
		img, err := catalog.Find(name)
		check(t, err)
		compareImage(t, img, b.Disk())
		b.Release()
	}
}

func compareImage(t *testing.T, img image.Image, v *snapstore.View) {
	t.Helper()
	raw, err := img.Open()
	check(t, err)
	defer raw.Close()
	if v.Size() != img.DiskBytes {
		t.Fatalf("image %s: view has %d bytes, want %d", img.Name, v.Size(), img.DiskBytes)
	}
	began, read := time.Now(), int64(0)
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < v.Size(); {
		n, hole := raw.Run(off)
		m, zero := v.Run(off)
		n = min(n, m, int64(len(a)))
		if hole && !zero {
			t.Fatalf("image %s: a hole at %#x is data in the view", img.Name, off)
		}
		if !zero {
			_, err := raw.ReadAt(context.Background(), a[:n], off)
			check(t, err)
			_, err = v.ReadAt(context.Background(), b[:n], off)
			check(t, err)
			if !bytes.Equal(a[:n], b[:n]) {
				t.Fatalf("image %s differs at %#x", img.Name, off)
			}
			read += n
		}
		off += n
	}
	t.Logf("image %s: %d MiB compared in %v", img.Name, read>>20, time.Since(began))
}
