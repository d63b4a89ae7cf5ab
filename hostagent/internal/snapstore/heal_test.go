package snapstore_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// whole tells that no build is here in part.
func (w *world) whole() bool {
	return !slices.ContainsFunc(w.builds(), func(f string) bool { return strings.Contains(f, ".") })
}

// copied is a host that has all of snap_1, which another has too.
func copied(t *testing.T) (near *world, l *link, g *guest, man machine.Manifest, healed *atomic.Int64) {
	t.Helper()
	_, l, g = pair(t)
	healed = &atomic.Int64{}
	near = newWorld(t, func(c *snapstore.Config) {
		c.Fetcher, c.Images = l, nil
		c.Healed = func(ok bool) {
			if ok {
				healed.Add(1)
			}
		}
	})
	near.resume("snap_1", g).end()
	eventually(t, near.whole)
	return near, l, g, openManifest(t, near, "snap_1"), healed
}

func TestWhatIsDamagedHereIsHealedFromElsewhereOrRefused(t *testing.T) {
	near, l, g, man, healed := copied(t)
	ctx := context.Background()
	for file, names := range map[string]string{
		"snapshots/snap_1/state": "state", "snapshots/snap_1/memory.hdr": "memory.hdr", "snapshots/snap_1/disk.hdr": "disk.hdr",
		"snapshots/snap_1/working-set": "working-set", "snapshots/snap_1/manifest.json": "manifest.json",
		"builds/" + man.MemoryBuilds[0]: man.MemoryBuilds[0], "builds/" + man.DiskBuilds[0]: man.DiskBuilds[0],
	} {
		for how, damage := range ways {
			isBuild := strings.HasPrefix(file, "builds/")
			if how == "bit-flipped" && isBuild {
				continue // only who reads the frame can know
			}
			t.Run(filepath.Base(file)+" "+how, func(t *testing.T) {
				path := filepath.Join(near.conf.Dir, file)
				good, err := os.ReadFile(path)
				check(t, err)
				bad := damage(slices.Clone(good))
				check(t, os.WriteFile(path, bad, 0o600))
				l.set(func() { l.cut = true })
				b, err := near.store.Open(ctx, "snap_1")
				if err == nil {
					b.Release()
				}
				recorded := strings.HasSuffix(file, manifestName) // The agent has read it before.
				if !recorded && (!errors.Is(err, machine.ErrDamaged) || !strings.Contains(err.Error(), names)) {
					t.Errorf("where nobody else can be asked: %v", err)
				}
				if now, err := os.ReadFile(path); !recorded && (err != nil || !bytes.Equal(now, bad)) {
					t.Error("what cannot be healed was changed")
				}
				l.set(func() { l.cut = false })
				before := healed.Load()
				near.resume("snap_1", g).end()
				if healed.Load() == before && !recorded {
					t.Error("no healing was counted")
				}
				eventually(t, near.whole)
				now, err := os.ReadFile(path)
				check(t, err)
				if !bytes.Equal(now, good) {
					t.Error("the file is not what it was")
				}
			})
		}
	}
	t.Run("manifest that was never read", func(t *testing.T) {
		path := filepath.Join(near.conf.Dir, "snapshots/snap_1", manifestName)
		check(t, os.WriteFile(path, []byte("{"), 0o600))
		near.restart()
		near.resume("snap_1", g).end()
	})
	// Healed is healed: nobody else is needed any more.
	l.set(func() { l.cut = true })
	near.restart()
	near.resume("snap_1", g).end()
}

const manifestName = "manifest.json"

func TestDamagedFramesAreHealedWhileTheyAreRead(t *testing.T) {
	near, l, g, man, healed := copied(t)
	ctx := context.Background()
	path := filepath.Join(near.conf.Dir, "builds", man.MemoryBuilds[0])
	good, err := os.ReadFile(path)
	check(t, err)
	bad := slices.Clone(good)
	for i := 512; i < len(bad)*9/10; i += 512 {
		bad[i] ^= 0x10
	}
	s, err := near.store.OpenSnapshot(ctx, "snap_1")
	check(t, err)
	check(t, os.WriteFile(path, bad, 0o600))
	l.set(func() { l.cut = true })
	p := make([]byte, len(g.memory))
	if _, err := s.Memory().ReadAt(ctx, p, 0); !errors.Is(err, machine.ErrDamaged) || !strings.Contains(err.Error(), man.MemoryBuilds[0]) {
		t.Errorf("where nobody else can be asked: %v", err)
	}
	l.set(func() {
		l.cut = false
		l.spoil = func(_ string, p []byte) { p[len(p)/2] ^= 1 } // A peer is damaged too.
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p := make([]byte, len(g.memory))
			if _, err := s.Memory().ReadAt(ctx, p, 0); err != nil || firstDifference(p, g.memory) >= 0 {
				t.Errorf("read: %v", err)
			}
		})
	}
	wg.Wait()
	eventually(t, func() bool {
		now, err := os.ReadFile(path)
		return err == nil && bytes.Equal(now, good)
	})
	s.Release()
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, good) {
		t.Errorf("the file is not what it was: %v", err)
	}
	if healed.Load() == 0 {
		t.Error("no healing was counted")
	}
}

func TestTheRestOfADamagedBuildIsHealedThoughNobodyReadsIt(t *testing.T) {
	near, _, _, man, _ := copied(t)
	path := filepath.Join(near.conf.Dir, "builds", man.MemoryBuilds[0])
	good, err := os.ReadFile(path)
	check(t, err)
	bad := slices.Clone(good)
	for i := 512; i < len(bad)*9/10; i += 512 {
		bad[i] ^= 0x10
	}
	for _, bad := range [][]byte{bad, good[:len(good)/2]} {
		check(t, os.WriteFile(path, bad, 0o600))
		s, err := near.store.OpenSnapshot(context.Background(), "snap_1")
		check(t, err)
		off := int64(0)
		for n, zero := s.Memory().Run(off); zero; n, zero = s.Memory().Run(off) {
			off += n
		}
		_, err = s.Memory().ReadAt(context.Background(), make([]byte, page), off)
		check(t, err)
		eventually(t, func() bool {
			now, err := os.ReadFile(path)
			return err == nil && bytes.Equal(now, good)
		})
		s.Release()
		near.restart() // The background may look at the build still, and have it open.
	}
}

func TestAPartialBuildThatIsWholeIsCompletedByTheNextAgent(t *testing.T) {
	near, l, g, man, _ := copied(t)
	for _, lost := range []bool{false, true} {
		near.stop()
		path := filepath.Join(near.conf.Dir, "builds", man.MemoryBuilds[0])
		good, err := os.ReadFile(path)
		check(t, err)
		// As an agent leaves it that ends between the last frame and the completion; or a host that loses its power after that.
		check(t, os.Rename(path, path+".part"))
		check(t, os.WriteFile(path+".have", bytes.Repeat([]byte{1}, frames(t, man.MemoryBuilds[0], good)+1), 0o600))
		if lost {
			check(t, os.WriteFile(path+".part", append(make([]byte, 100<<10), good[100<<10:]...), 0o600))
		}
		l.set(func() { l.cut = !lost })
		near.start()
		near.resume("snap_1", g).end()
		eventually(t, near.whole)
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, good) {
			t.Errorf("the file is not what it was: %v", err)
		}
	}
}

func TestAllFramesThatAFormerAgentLostAreNotedNotTheFirstAlone(t *testing.T) {
	near, l, _, man, _ := copied(t)
	near.stop()
	path := filepath.Join(near.conf.Dir, "builds", man.MemoryBuilds[0])
	good, err := os.ReadFile(path)
	check(t, err)
	marks := bytes.Repeat([]byte{1}, frames(t, man.MemoryBuilds[0], good)+1)
	check(t, os.WriteFile(path+".have", marks, 0o600))
	check(t, os.Remove(path))
	copy(good[512:len(good)*9/10], make([]byte, len(good)))
	check(t, os.WriteFile(path+".part", good, 0o600))
	l.set(func() { l.cut = true })
	near.start()
	s, err := near.store.OpenSnapshot(context.Background(), "snap_1")
	check(t, err)
	defer s.Release()
	eventually(t, func() bool {
		now, err := os.ReadFile(path + ".have")
		return err == nil && bytes.Count(now, []byte{0}) > 1
	})
}

func frames(t *testing.T, id string, file []byte) int {
	t.Helper()
	build, err := snapfmt.ParseID(id)
	check(t, err)
	r, err := buildfmt.Open(context.Background(), buildfmt.File(bytes.NewReader(file)), int64(len(file)), build)
	check(t, err)
	return r.Frames()
}
