package snapstore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
)

// ways to damage a file.
var ways = map[string]func(b []byte) []byte{
	"truncated":   func(b []byte) []byte { return b[:len(b)/2] },
	"empty":       func([]byte) []byte { return nil },
	"oversized":   func(b []byte) []byte { return append(b, make([]byte, 4096)...) },
	"bit-flipped": func(b []byte) []byte { b[len(b)*3/4] ^= 0x10; return b },
	"of a wrong version": func(b []byte) []byte {
		binary.LittleEndian.PutUint32(b[8:], 99)
		return b
	},
}

func TestDamagedFilesAreRefusedByNameAndWorkAgainWhenRepaired(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(8<<20, imageSize)
	g.write(rand.New(rand.NewPCG(1, 1)), 20, 20)
	g.save("snap_1")
	g.end()
	man := openManifest(t, w, "snap_1")
	for file, names := range map[string]string{
		"snapshots/snap_1/state": "state", "snapshots/snap_1/memory.hdr": "memory.hdr", "snapshots/snap_1/disk.hdr": "disk.hdr",
		"snapshots/snap_1/working-set": "working-set", "snapshots/snap_1/manifest.json": "manifest.json", "builds/" + man.MemoryBuilds[0]: man.MemoryBuilds[0],
	} {
		for how, damage := range ways {
			if how == "bit-flipped" && strings.HasPrefix(file, "builds/") {
				continue // only who reads the frame can know
			}
			t.Run(filepath.Base(file)+" "+how, func(t *testing.T) {
				path := filepath.Join(w.conf.Dir, file)
				good, err := os.ReadFile(path)
				check(t, err)
				check(t, os.WriteFile(path, damage(slices.Clone(good)), 0o600))
				_, err = w.store.Open(context.Background(), "snap_1")
				if !errors.Is(err, machine.ErrDamaged) || !strings.Contains(err.Error(), names) || !strings.Contains(err.Error(), "snap_1") {
					t.Errorf("error does not say what is wrong: %v", err)
				}
				check(t, os.WriteFile(path, good, 0o600))
				w.resume("snap_1", g).end()
			})
		}
		t.Run(filepath.Base(file)+" missing", func(t *testing.T) {
			path := filepath.Join(w.conf.Dir, file)
			check(t, os.Rename(path, path+".away"))
			_, err := w.store.Open(context.Background(), "snap_1")
			if !errors.Is(err, machine.ErrDamaged) || !strings.Contains(err.Error(), names) {
				t.Errorf("error does not say what is wrong: %v", err)
			}
			check(t, os.Rename(path+".away", path))
			w.resume("snap_1", g).end()
		})
	}
}

func TestADiskCanBeHadThoughItsMemoryIsDamaged(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(8<<20, imageSize)
	g.write(rand.New(rand.NewPCG(4, 1)), 20, 20)
	g.save("snap_1")
	g.end()
	man := openManifest(t, w, "snap_1")
	for _, file := range []string{"snapshots/snap_1/state", "snapshots/snap_1/memory.hdr", "snapshots/snap_1/working-set", "builds/" + man.MemoryBuilds[0]} {
		path := filepath.Join(w.conf.Dir, file)
		whole, err := os.ReadFile(path)
		check(t, err)
		check(t, os.Truncate(path, int64(len(whole)/2)))
		base, err := w.store.OpenDisk(context.Background(), "snap_1")
		check(t, err)
		got := make([]byte, len(g.diskData))
		readView(t, base.(*snapstore.Snapshot).Disk(), got)
		if at := firstDifference(got, g.diskData); at >= 0 {
			t.Errorf("with a damaged %s the disk differs at %d", file, at)
		}
		check(t, os.WriteFile(path, whole, 0o600))
		// Who wants the whole snapshot meanwhile gets its memory too.
		w.resume("snap_1", g).end()
		base.Release()
	}
	check(t, os.Truncate(filepath.Join(w.conf.Dir, "snapshots/snap_1/disk.hdr"), 10))
	if _, err := w.store.OpenDisk(context.Background(), "snap_1"); !errors.Is(err, machine.ErrDamaged) || !strings.Contains(err.Error(), "disk.hdr") {
		t.Errorf("a damaged disk header is %v", err)
	}
}

func openManifest(t *testing.T, w *world, id string) machine.Manifest {
	t.Helper()
	b, err := w.store.Open(context.Background(), id)
	check(t, err)
	defer b.Release()
	return b.Manifest()
}

func TestADamagedFrameIsAnErrorThatNamesItAndNeverData(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(8<<20, imageSize)
	g.write(rand.New(rand.NewPCG(2, 1)), 40, 20)
	g.save("snap_1")
	g.end()
	man := openManifest(t, w, "snap_1")
	path := filepath.Join(w.conf.Dir, "builds", man.MemoryBuilds[0])
	good, err := os.ReadFile(path)
	check(t, err)
	bad := slices.Clone(good)
	bad[40] ^= 1 // in the first frame
	check(t, os.WriteFile(path, bad, 0o600))
	s, err := w.store.OpenSnapshot(context.Background(), "snap_1")
	check(t, err)
	defer s.Release()
	failed := 0
	p := make([]byte, page)
	for off := int64(0); off < s.Memory().Size(); off += page {
		_, err := s.Memory().ReadAt(context.Background(), p, off)
		if err == nil {
			if firstDifference(p, g.memory[off:off+page]) >= 0 {
				t.Fatalf("wrong data at %#x", off)
			}
			continue
		}
		failed++
		if !errors.Is(err, machine.ErrDamaged) || !strings.Contains(err.Error(), man.MemoryBuilds[0]) || !strings.Contains(err.Error(), "frame 0") ||
			!strings.Contains(err.Error(), fmt.Sprintf("memory of snapshot snap_1 at offset %#x", off)) {
			t.Fatalf("error does not say what is wrong: %v", err)
		}
	}
	if failed != 16 {
		t.Errorf("%d pages could not be read; a frame has 16", failed)
	}
	// A file that is put in its place is found, though the old one is open.
	check(t, os.WriteFile(path+".new", good, 0o600))
	check(t, os.Rename(path+".new", path))
	readView(t, s.Memory(), make([]byte, s.Memory().Size()))
}

func TestADamagedImageIsConvertedAgain(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(8<<20, imageSize)
	g.end()
	build := w.builds()[0]
	path := filepath.Join(w.conf.Dir, "builds", build)
	check(t, os.Truncate(path, 100))
	again := w.boot(8<<20, imageSize)
	g.compare(again)
	again.end()
	if list := w.builds(); len(list) != 1 || list[0] != build {
		t.Errorf("builds: %v, want %s", list, build)
	}
}

var errInjected = errors.New("injected")

func TestASaveThatFailsLeavesNothing(t *testing.T) {
	for _, step := range []string{"begin", "dirty", "freeze", "read memory", "read disk", "state", "disk full"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t, nil)
			g := w.boot(8<<20, imageSize)
			g.write(rand.New(rand.NewPCG(3, 1)), 20, 20)
			before := w.tree()
			g.inject = func(s string) error {
				if s == step {
					return errInjected
				}
				if step == "state" && s == "freeze" {
					// Something takes the state file away.
					paths, err := filepath.Glob(filepath.Join(w.conf.Dir, "drafts", "*", "entry", "state"))
					check(t, err)
					return os.Remove(paths[0])
				}
				if step == "disk full" && s == "freeze" {
					// The last rename of all fails.
					return os.MkdirAll(filepath.Join(w.conf.Dir, "snapshots", "snap_1", "in the way"), 0o700)
				}
				return nil
			}
			if _, _, err := g.try("snap_1"); err == nil {
				t.Fatal("it did not fail")
			}
			check(t, os.RemoveAll(filepath.Join(w.conf.Dir, "snapshots", "snap_1")))
			if after := w.tree(); !slices.Equal(after, before) {
				t.Errorf("left: %v\nbefore: %v", after, before)
			}
			g.inject = func(string) error { return nil }
			g.save("snap_1")
			g.end()
			w.resume("snap_1", g).end()
		})
	}
}

func TestAPageCacheThatIsLostCostsOnlyTime(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(8<<20, imageSize)
	g.write(rand.New(rand.NewPCG(4, 1)), 20, 20)
	g.inject = func(s string) error {
		if s == "commit" {
			return errInjected
		}
		return nil
	}
	g.save("snap_1")
	g.end()
	w.resume("snap_1", g).end()
}

func TestACanceledCommitLeavesNothing(t *testing.T) {
	w := newWorld(t, nil)
	g := w.boot(8<<20, imageSize)
	g.write(rand.New(rand.NewPCG(5, 1)), 20, 20)
	before := w.tree()
	ctx, cancel := context.WithCancel(context.Background())
	d, err := w.store.Draft(ctx, g.manifest("snap_1"), &memoryPart{g: g}, &diskPart{g: g})
	check(t, err)
	check(t, os.WriteFile(d.StatePath(), []byte("state"), 0o600))
	check(t, d.TakeDisk(ctx))
	cancel()
	if _, _, err := d.Commit(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("commit: %v", err)
	}
	check(t, d.Abort(context.Background()))
	check(t, d.Abort(context.Background()))
	if after := w.tree(); !slices.Equal(after, before) {
		t.Errorf("left: %v\nbefore: %v", after, before)
	}
	g.end()
}

func damageFile(t *testing.T, w *world, file string) {
	t.Helper()
	path := filepath.Join(w.conf.Dir, file)
	b, err := os.ReadFile(path)
	check(t, err)
	b[len(b)/2] ^= 1
	check(t, os.WriteFile(path, b, 0o600))
}
