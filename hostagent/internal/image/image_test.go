package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const size = 4 << 20

// catalog makes one image "tiny" of content, whose blocks of zeros are holes if sparse.
func catalog(t *testing.T, content []byte, sparse bool) *Catalog {
	t.Helper()
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "artifacts.json"), []byte(`{"images":{"tiny":{"path":"tiny.ext4","sha256":"00","disk_mb":4}}}`), 0o644))
	f, err := os.Create(filepath.Join(dir, "real"))
	check(t, err)
	for off := 0; off < len(content); off += BlockSize {
		block := content[off:min(off+BlockSize, len(content))]
		if sparse && bytes.Equal(block, zeroBlock[:len(block)]) {
			continue
		}
		_, err := f.WriteAt(block, int64(off))
		check(t, err)
	}
	check(t, f.Truncate(int64(len(content))))
	check(t, f.Close())
	check(t, os.Symlink(filepath.Join(dir, "real"), filepath.Join(dir, "tiny.ext4")))
	c, err := NewCatalog(dir)
	check(t, err)
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// content has data in some blocks.
func content(length int) []byte {
	b := make([]byte, length)
	r := rand.New(rand.NewPCG(1, 1))
	for off := 0; off < length; off += BlockSize * (1 + r.IntN(20)) {
		for i := off; i < min(off+BlockSize, length); i++ {
			b[i] = byte(r.Uint32())
		}
	}
	return b
}

func openTiny(t *testing.T, c *Catalog) *File {
	t.Helper()
	img, err := c.Find("tiny")
	check(t, err)
	f, err := img.Open()
	check(t, err)
	t.Cleanup(func() { check(t, f.Close()) })
	return f
}

func TestAnImageIsReadAsItIs(t *testing.T) {
	for _, length := range []int{size, size / 2, size/2 + 100, 0} {
		data := content(length)
		f := openTiny(t, catalog(t, data, true))
		if f.Size() != size {
			t.Fatalf("size %d", f.Size())
		}
		want := append(bytes.Clone(data), make([]byte, size-length)...)
		got := make([]byte, size)
		_, err := f.ReadAt(context.Background(), got, 0)
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Error("read back something else")
		}
		for off := int64(0); off < size; {
			n, zero := f.Run(off)
			if n <= 0 || off+n > size || zero && !bytes.Equal(want[off:off+n], make([]byte, n)) {
				t.Fatalf("run at %d: %d bytes, zero %v", off, n, zero)
			}
			from, err := f.ReadAt(context.Background(), got[:n], off)
			if err != nil || zero != (from == "zero") {
				t.Fatalf("run at %d, zero %v, comes from %q: %v", off, zero, from, err)
			}
			off += n
		}
		walked := make([]byte, size)
		_, err = f.Walk(context.Background(), func(p []byte, off int64) error {
			for i := 0; i < len(p); i += BlockSize {
				if bytes.Equal(p[i:i+BlockSize], zeroBlock[:]) {
					return fmt.Errorf("block %d is zeros", off/BlockSize)
				}
			}
			copy(walked[off:], p)
			return nil
		})
		check(t, err)
		if !bytes.Equal(walked, want) {
			t.Error("walked over something else")
		}
		if _, err := f.ReadAt(context.Background(), got[:2], size-1); err == nil {
			t.Error("a read beyond the end")
		}
	}
}

func walk(t *testing.T, f *File) string {
	t.Helper()
	id, err := f.Walk(context.Background(), nil)
	check(t, err)
	return id
}

func TestTheIDIsThatOfTheContentHoweverItIsStored(t *testing.T) {
	data := content(size)
	id := walk(t, openTiny(t, catalog(t, data, true)))
	if dense := walk(t, openTiny(t, catalog(t, data, false))); dense != id {
		t.Errorf("without holes: %s, with: %s", dense, id)
	}
	data[0] ^= 1
	if other := walk(t, openTiny(t, catalog(t, data, true))); other == id {
		t.Error("other content has the same id")
	}
	moved := append(bytes.Clone(data[BlockSize:]), data[:BlockSize]...)
	if other := walk(t, openTiny(t, catalog(t, moved, true))); other == id {
		t.Error("the same blocks at other places have the same id")
	}
	// As doc.go says: SHA-256 of "covey image 1\n" and the size.
	const empty = "a84db80aed5c123fa0f102da76426805e1fb3db4c153b05164eed182fa8c28d5"
	if got := walk(t, openTiny(t, catalog(t, nil, true))); got != empty {
		t.Errorf("an empty image has id %s, want %s", got, empty)
	}
}

func TestAFileThatIsReplacedIsNoticed(t *testing.T) {
	c := catalog(t, content(size), true)
	img, err := c.Find("tiny")
	check(t, err)
	f, err := img.Open()
	check(t, err)
	defer f.Close()
	check(t, os.WriteFile(img.Path, content(size/2), 0o644))
	if _, err := f.Walk(context.Background(), nil); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("walk: %v", err)
	}
	if _, err := img.Open(); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("open: %v", err)
	}
	now, err := c.Find("tiny")
	check(t, err)
	if now.Stamp == img.Stamp {
		t.Error("the stamp is the same")
	}
}

func TestWhatIsNotThereOrWrongIsSaid(t *testing.T) {
	c := catalog(t, content(size), true)
	if _, err := c.Find("huge"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "there are: tiny") {
		t.Errorf("find: %v", err)
	}
	if names, err := c.Names(); err != nil || len(names) != 1 || names[0] != "tiny" {
		t.Errorf("names: %v, %v", names, err)
	}
	if _, err := NewCatalog(t.TempDir()); err == nil {
		t.Error("a catalog without artifacts.json")
	}
	img, err := c.Find("tiny")
	check(t, err)
	check(t, os.Truncate(img.Path, size+BlockSize))
	large, err := c.Find("tiny")
	check(t, err)
	if _, err := large.Open(); err == nil || !strings.Contains(err.Error(), "more than its disk") {
		t.Errorf("a file larger than its disk: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	check(t, os.Truncate(img.Path, size))
	if _, err := openTiny(t, c).Walk(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("walk that was given up: %v", err)
	}
}
