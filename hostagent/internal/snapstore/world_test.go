package snapstore_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coveyhq/covey/hostagent/internal/disk"
	"github.com/coveyhq/covey/hostagent/internal/image"
	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// g0 is a time long ago.
var g0 = time.Unix(1e9, 0)

const page = 4096

// world is a host: a store, with a real pager cache and real disks.
type world struct {
	t     testing.TB
	dir   string
	store *snapstore.Store
	conf  snapstore.Config
	cache *pager.Cache
	disks *disk.Store
	n     int // makes names
	// removed counts the snapshots that the store said it removed.
	removed atomic.Int64
}

// imageSize is that of the stock image "stock", bytes.
const imageSize = 8 << 20

func newWorld(t testing.TB, change func(*snapstore.Config)) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	artifacts := filepath.Join(w.dir, "artifacts")
	writeImage(t, artifacts, "stock", imageSize, 1)
	catalog, err := image.NewCatalog(artifacts)
	check(t, err)
	w.conf = snapstore.Config{
		Dir: filepath.Join(w.dir, "store"), Images: catalog, Log: slog.New(slog.DiscardHandler),
		Removed: func(string) { w.removed.Add(1) },
	}
	if change != nil {
		change(&w.conf)
	}
	shm, err := os.MkdirTemp("/dev/shm", "covey-test-")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(shm) })
	w.cache, err = pager.NewCache(pager.Config{Dir: shm, Log: slog.New(slog.DiscardHandler)})
	check(t, err)
	t.Cleanup(func() { w.cache.Close() })
	w.disks, err = disk.NewStore(filepath.Join(w.dir, "overlay"), slog.New(slog.DiscardHandler))
	check(t, err)
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) start() {
	w.t.Helper()
	var err error
	w.store, err = snapstore.New(w.conf)
	check(w.t, err)
}

func (w *world) stop() {
	if w.store != nil {
		check(w.t, w.store.Close())
	}
	w.store = nil
}

// restart is what a new agent does.
func (w *world) restart() {
	w.stop()
	w.start()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// writeImage makes a catalog of one sparse image with some data in it.
func writeImage(t testing.TB, dir, name string, size int64, seed uint64) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Join(dir, "images"), 0o755))
	f, err := os.Create(filepath.Join(dir, "images", name+".ext4"))
	check(t, err)
	defer f.Close()
	check(t, f.Truncate(size))
	r := rand.New(rand.NewPCG(seed, 0))
	for off := int64(0); off < size; off += 1 << 20 {
		_, err := f.WriteAt(random(r, 40*page), off+int64(r.IntN(8))*page)
		check(t, err)
	}
	raw, err := json.Marshal(map[string]any{"images": map[string]any{name: map[string]any{"path": "images/" + name + ".ext4", "disk_mb": size >> 20}}})
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "artifacts.json"), raw, 0o644))
}

// words are what random bytes are made of.
var words = func() (list [512][]byte) {
	r := rand.New(rand.NewPCG(7, 7))
	for i := range list {
		list[i] = make([]byte, 8+r.IntN(24))
		for j := range list[i] {
			list[i][j] = byte(r.Uint32())
		}
	}
	return list
}()

// random makes bytes that compress by half or so, as memory does.
func random(r *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+64)
	for len(b) < n {
		v := r.Uint64()
		b = append(b, words[v%512]...)
		b = append(b, byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40))
	}
	return b[:n]
}

// guest stands for a VM: what its memory and its disk must hold, beside the real parts.
type guest struct {
	w            *world
	base         *snapstore.Snapshot
	fromSnapshot bool
	memory       []byte
	diskData     []byte
	dirty        map[int64]bool // pages by number
	disk         *disk.Disk
	// inject makes a step fail.
	inject func(step string) error
}

func (w *world) guest(base *snapstore.Snapshot, fromSnapshot bool, memoryBytes, diskBytes int64) *guest {
	w.t.Helper()
	w.n++
	g := &guest{w: w, base: base, fromSnapshot: fromSnapshot, memory: make([]byte, memoryBytes), diskData: make([]byte, diskBytes), dirty: map[int64]bool{}}
	g.inject = func(string) error { return nil }
	id := fmt.Sprintf("g%d", w.n)
	var err error
	g.disk, err = w.disks.Create(context.Background(), id, base.Disk(), diskBytes, filepath.Join(w.dir, id+".sock"), os.Getuid())
	check(w.t, err)
	return g
}

// boot starts a guest of the stock image.
func (w *world) boot(memoryBytes, diskBytes int64) *guest {
	w.t.Helper()
	base, err := w.store.OpenStock(context.Background(), "stock")
	check(w.t, err)
	g := w.guest(base, false, memoryBytes, diskBytes)
	readView(w.t, base.Disk(), g.diskData[:base.Disk().Size()])
	return g
}

// resume starts a guest of a snapshot, which must hold what the former one had.
func (w *world) resume(id string, former *guest) *guest {
	w.t.Helper()
	base, err := w.store.OpenSnapshot(context.Background(), id)
	check(w.t, err)
	g := w.guest(base, true, base.Memory().Size(), base.Disk().Size())
	readView(w.t, base.Memory(), g.memory)
	readView(w.t, base.Disk(), g.diskData)
	if former != nil {
		former.compare(g)
	}
	return g
}

func (g *guest) compare(o *guest) {
	g.w.t.Helper()
	for _, s := range []struct {
		name string
		a, b []byte
	}{{"memory", g.memory, o.memory}, {"disk", g.diskData, o.diskData}} {
		if i := firstDifference(s.a, s.b); i >= 0 {
			g.w.t.Fatalf("%s differs at %#x", s.name, i)
		}
	}
}

func firstDifference(a, b []byte) int {
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	for i := 0; i < len(a); i += page {
		if !bytes.Equal(a[i:i+page], b[i:i+page]) {
			return i
		}
	}
	return -1
}

// readView reads all of a view, in pieces like those of a pager.
func readView(t testing.TB, v *snapstore.View, into []byte) {
	t.Helper()
	if v.Size() != int64(len(into)) {
		t.Fatalf("view has %d bytes, want %d", v.Size(), len(into))
	}
	for off := int64(0); off < v.Size(); {
		n, zero := v.Run(off)
		if n <= 0 || off+n > v.Size() {
			t.Fatalf("run at %#x has %d bytes", off, n)
		}
		n = min(n, 64<<10)
		p := into[off : off+n]
		from, err := v.ReadAt(context.Background(), p, off)
		check(t, err)
		if zero != (from == "zero") {
			t.Fatalf("at %#x: run says zero=%v, bytes came from %q", off, zero, from)
		}
		off += n
	}
}

// write writes random pages: so many runs of up to most pages, in memory and on the disk. Some become zeros.
func (g *guest) write(r *rand.Rand, runs, most int) {
	g.w.t.Helper()
	for range runs {
		n := 1 + r.IntN(most)
		first := r.IntN(len(g.memory)/page - n)
		part := g.memory[first*page : (first+n)*page]
		if r.IntN(5) == 0 {
			clear(part)
		} else {
			copy(part, random(r, len(part)))
		}
		for i := range n {
			g.dirty[int64(first+i)] = true
		}
		first = r.IntN(len(g.diskData)/page - n)
		part = g.diskData[first*page : (first+n)*page]
		if r.IntN(5) == 0 {
			clear(part)
			check(g.w.t, g.disk.Trim(context.Background(), int64(first*page), int64(len(part))))
			continue
		}
		copy(part, random(r, len(part)))
		check(g.w.t, g.disk.WriteAt(context.Background(), part, int64(first*page)))
	}
}

func (g *guest) manifest(id string) machine.Manifest {
	base := g.base.Manifest()
	m := machine.Manifest{
		ID: id, Kind: machine.PauseSnapshot, Tenant: "default", Driver: "qemu", VCPUs: 1, MemoryBytes: int64(len(g.memory)), DiskBytes: int64(len(g.diskData)),
		Image: base.Image, ImageID: base.ImageID, SourceSandboxID: "sb_1", CreateTime: time.Now().UTC(),
	}
	if g.fromSnapshot {
		m.ParentID, m.Generation = base.ID, base.Generation+1
	}
	return m
}

// try makes a snapshot as the machine does.
func (g *guest) try(id string) (man machine.Manifest, stats machine.SaveStats, err error) {
	ctx := context.Background()
	d, err := g.w.store.Draft(ctx, g.manifest(id), &memoryPart{g: g}, &diskPart{g: g})
	if err != nil {
		return man, stats, err
	}
	err = os.WriteFile(d.StatePath(), []byte("state of "+id), 0o600)
	for _, n := range sorted(g.dirty) {
		if err == nil {
			err = d.WriteDirty(g.memory[n*page:(n+1)*page], n*page)
		}
	}
	if err == nil {
		err = d.TakeDisk(ctx)
	}
	if err == nil {
		man, stats, err = d.Commit(ctx)
	}
	if err != nil {
		check(g.w.t, d.Abort(ctx))
	}
	return man, stats, err
}

func (g *guest) save(id string) machine.SaveStats {
	g.w.t.Helper()
	_, stats, err := g.try(id)
	check(g.w.t, err)
	return stats
}

// end is what teardown does.
func (g *guest) end() {
	g.w.t.Helper()
	check(g.w.t, g.disk.Discard(context.Background()))
	g.base.Release()
}

func sorted(set map[int64]bool) []int64 {
	list := make([]int64, 0, len(set))
	for n := range set {
		list = append(list, n)
	}
	slices.Sort(list)
	return list
}

// memoryPart adapts a guest to snapstore.MemoryDrafter, with the real pager's draft.
type memoryPart struct {
	machine.Memory
	g *guest
}

func (m *memoryPart) Base() machine.Base {
	if !m.g.fromSnapshot {
		return nil
	}
	return m.g.base
}

func (m *memoryPart) WorkingSet() []int64 { return []int64{0, page} }

func (m *memoryPart) BeginDraft(id string, size int64) (snapstore.MemoryDraft, error) {
	if err := m.g.inject("begin"); err != nil {
		return nil, err
	}
	d, err := m.g.w.cache.BeginDraft(id, size)
	return &memoryDraft{d, m.g}, err
}

type memoryDraft struct {
	*pager.Draft
	g *guest
}

func (d *memoryDraft) WriteDirty(p []byte, off int64) error {
	if err := d.g.inject("dirty"); err != nil {
		return err
	}
	return d.Draft.WriteDirty(p, off)
}

func (d *memoryDraft) Ranges() (list []snapstore.Range) {
	for _, r := range d.Draft.Ranges() {
		list = append(list, snapstore.Range(r))
	}
	return list
}

func (d *memoryDraft) ReadAt(p []byte, off int64) (int, error) {
	if err := d.g.inject("read memory"); err != nil {
		return 0, err
	}
	return d.Draft.ReadAt(p, off)
}

func (d *memoryDraft) Commit(v *snapstore.View) error {
	if err := d.g.inject("commit"); err != nil {
		return err
	}
	if err := d.Draft.Commit(v); err != nil {
		return err
	}
	return d.Draft.Close()
}

// diskPart adapts a guest's disk to snapstore.DiskFreezer.
type diskPart struct {
	machine.Disk
	g *guest
}

func (d *diskPart) Base() machine.Base { return d.g.base }

func (d *diskPart) Freeze(ctx context.Context) (snapstore.FrozenDisk, error) {
	if err := d.g.inject("freeze"); err != nil {
		return nil, err
	}
	f, err := d.g.disk.Freeze(ctx)
	return &frozenDisk{f, d.g}, err
}

type frozenDisk struct {
	*disk.Frozen
	g *guest
}

func (f *frozenDisk) Ranges() (list []snapstore.Range) {
	for _, r := range f.Frozen.Ranges() {
		list = append(list, snapstore.Range(r))
	}
	return list
}

func (f *frozenDisk) ReadAt(p []byte, off int64) (int, error) {
	if err := f.g.inject("read disk"); err != nil {
		return 0, err
	}
	return f.Frozen.ReadAt(p, off)
}

// tree lists all files below the store's directory.
func (w *world) tree() (list []string) {
	w.t.Helper()
	check(w.t, filepath.WalkDir(w.conf.Dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // The worker has just removed it.
		}
		if err == nil && path != w.conf.Dir {
			list = append(list, strings.TrimPrefix(path, w.conf.Dir+"/"))
		}
		return err
	}))
	return list
}

func (w *world) builds() (list []string) {
	for _, f := range w.tree() {
		if name, ok := strings.CutPrefix(f, "builds/"); ok {
			list = append(list, name)
		}
	}
	return list
}
