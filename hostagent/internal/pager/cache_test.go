package pager_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/pager/pagertest"
)

// eventually waits for what the background brings about.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !cond(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// fillWhole brings in a whole image by prefetching it.
func fillWhole(t *testing.T, c *pager.Cache, key string, p pagertest.Pattern) {
	t.Helper()
	var all []int64
	for off := int64(0); off < p.Bytes; off += 64 << 10 {
		all = append(all, off)
	}
	before := c.Stats().CachedBytes
	img, err := c.Open(key, p, all)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "prefetch", func() bool { return c.Stats().CachedBytes == before+p.Bytes })
	img.Release()
}

func TestImagesThatNobodyUsesGoLongestUnusedFirst(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t)
	c := newCache(t, pager.Config{Dir: dir, LimitBytes: 3 * mib})
	p := pagertest.Pattern{Seed: 20, Bytes: mib}
	used := open(t, c, "snap_used", p, 0, 64<<10)
	for _, key := range []string{"snap_a", "snap_b", "snap_a", "snap_c"} {
		img, err := c.Open(key, p, nil)
		if err != nil {
			t.Fatal(err)
		}
		s := serve(t, c, "sb_"+key+time.Now().Format("150405.000000"), img)
		tt := start(t, s, img, pagertest.Setup{})
		checkAll(t, tt, p, 1)
		tt.Close()
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		img.Release()
	}
	eventually(t, "eviction", func() bool { return c.Stats().CachedBytes <= 3*mib })
	names, _ := filepath.Glob(filepath.Join(dir, "*.mem"))
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	if want := []string{"snap_a.mem", "snap_c.mem", "snap_used.mem"}; !slices.Equal(names, want) {
		t.Errorf("left are %v, want %v", names, want)
	}
	checkAll(t, start(t, serve(t, c, "sb_used", used), used, pagertest.Setup{}), p, 1)
}

func TestADroppedImageServesWhoUsesItAndIsForgotten(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t)
	c := newCache(t, pager.Config{Dir: dir})
	p := pagertest.Pattern{Seed: 21, Bytes: mib}
	img := open(t, c, "snap_d", p)
	tt := start(t, serve(t, c, "sb_d", img), img, pagertest.Setup{})
	c.Drop("snap_d")
	c.Drop("snap_never_seen")
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	checkAll(t, tt, p, 1)
	// The same key again is another file.
	q := pagertest.Pattern{Seed: 22, Bytes: 2 * mib}
	again := open(t, c, "snap_d", q)
	checkAll(t, start(t, serve(t, c, "sb_q", again), again, pagertest.Setup{}), q, 1)
}

func TestSweepRemovesWhatAFormerAgentLeftAndNobodyOpened(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t)
	p := pagertest.Pattern{Seed: 23, Bytes: mib}
	first, err := pager.NewCache(pager.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	fillWhole(t, first, "snap_kept", p)
	fillWhole(t, first, "snap_left", p)
	if _, err := first.BeginDraft("snap_draft", mib); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	c := newCache(t, pager.Config{Dir: dir})
	if got := c.Stats().CachedBytes; got != 2*mib {
		t.Errorf("it found %d bytes of the former agent's, want %d", got, 2*mib)
	}
	// What is in the file is not read again.
	kept := open(t, c, "snap_kept", slow{Pattern: p, to: mib, err: errors.New("read again")})
	c.Sweep()
	left, _ := os.ReadDir(dir)
	if len(left) != 1 || left[0].Name() != "snap_kept.mem" {
		t.Errorf("left are %v, want snap_kept.mem", left)
	}
	checkAll(t, start(t, serve(t, c, "sb_kept", kept), kept, pagertest.Setup{}), p, 1)
}

func TestAFileThatAVMMPutPagesInIsGivenToNoFurtherVM(t *testing.T) {
	t.Parallel()
	c := newCache(t, pager.Config{})
	p := pagertest.Pattern{Seed: 24, Bytes: mib}
	img := open(t, c, "snap_s", p)
	// Reading a hole of a shared file through a mapping allocates it.
	m, err := unix.Mmap(int(img.File().Fd()), 0, mib, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	if m[8*4096] != 0 {
		t.Fatal("a hole is not zeros")
	}
	next := open(t, c, "snap_s", p)
	checkAll(t, start(t, serve(t, c, "sb_s", next), next, pagertest.Setup{}), p, 1)
	if got := c.Stats().Strayed; got != 1 {
		t.Errorf("%d files strayed, want 1", got)
	}
}

func TestTheImageFileCannotBeWrittenByWhoHasItsDescriptor(t *testing.T) {
	t.Parallel()
	c := newCache(t, pager.Config{})
	img := open(t, c, "snap_ro", pagertest.Pattern{Bytes: mib})
	if _, err := img.File().WriteAt([]byte{1}, 0); err == nil {
		t.Error("a write went through")
	}
	if _, err := unix.Mmap(int(img.File().Fd()), 0, mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EACCES) {
		t.Errorf("a shared writable mapping: %v, want EACCES", err)
	}
}

func TestTheWorkingSetIsTheOrderOfNeedAndIsPrefetched(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 25, Bytes: 8 * mib, Zeros: 5}
	c := newCache(t, pager.Config{})
	img := open(t, c, "snap_ws", p)
	s := serve(t, c, "sb_ws", img)
	tt := start(t, s, img, pagertest.Setup{})
	want := []int64{5 * mib, 0, 3 * mib}
	for _, off := range append(want, 64<<10 /* zeros */) {
		ask(t, tt, pagertest.Order{Do: "read", Off: off + 4096, Len: 1})
	}
	if got := s.WorkingSet(); !slices.Equal(got, want) {
		t.Errorf("the working set is %#x, want %#x", got, want)
	}
	// A clone gets the same pages without a fault; its working set has them all the same.
	clone := serve(t, c, "sb_clone", img)
	ct := start(t, clone, img, pagertest.Setup{})
	<-clone.Connected()
	for _, off := range want {
		ask(t, ct, pagertest.Order{Do: "read", Off: off + 8192, Len: 1})
	}
	got := clone.WorkingSet()
	slices.Sort(got)
	if want := []int64{0, 3 * mib, 5 * mib}; !slices.Equal(got, want) {
		t.Errorf("the clone's working set is %#x, want %#x", got, want)
	}

	other := newCache(t, pager.Config{})
	restored := open(t, other, "snap_ws", slow{Pattern: p, from: "peer"}, want...)
	eventually(t, "prefetch", func() bool { return other.Stats().CachedBytes == 3*64<<10 })
	rs := serve(t, other, "sb_r", restored)
	rt := start(t, rs, restored, pagertest.Setup{})
	for _, off := range want {
		ask(t, rt, pagertest.Order{Do: "read", Off: off, Len: 1})
	}
	if st := other.Stats(); st.Filled+st.Cached != 0 {
		t.Errorf("%d faults came to the pager after prefetching", st.Filled+st.Cached)
	}
	if got, want := rs.Sources(), []pager.SourceCount{{Source: "peer", Pages: 48, Bytes: 48 * 4096}}; !slices.Equal(got, want) {
		t.Errorf("sources are %v, want %v", got, want)
	}
}

func TestADraftBecomesTheImageOfItsSnapshot(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t)
	c := newCache(t, pager.Config{Dir: dir})
	parent := pagertest.Pattern{Seed: 26, Bytes: mib, Zeros: 3}
	d, err := c.BeginDraft("snap_new", mib)
	if err != nil {
		t.Fatal(err)
	}
	page := func(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }
	write := func(off int64, pages ...[]byte) {
		t.Helper()
		if err := d.WriteDirty(bytes.Join(pages, nil), off); err != nil {
			t.Fatal(err)
		}
	}
	write(0, page(1), page(2), page(0), page(0), page(3))
	write(100*4096, page(0))
	write(100*4096, page(4)) // the last counts
	write(120*4096, page(5))
	write(120*4096, page(0))
	want := []pager.Range{
		{Off: 0, Len: 2 * 4096}, {Off: 2 * 4096, Len: 2 * 4096, Zero: true}, {Off: 4 * 4096, Len: 4096},
		{Off: 100 * 4096, Len: 4096}, {Off: 120 * 4096, Len: 4096, Zero: true},
	}
	if got := d.Ranges(); !slices.Equal(got, want) {
		t.Errorf("ranges are %v, want %v", got, want)
	}
	if got := c.Stats().CachedBytes; got != 4*4096 {
		t.Errorf("the draft takes %d bytes, want those of 4 pages", got)
	}
	b := make([]byte, 4096)
	if _, err := d.ReadAt(b, 4096); err != nil || !bytes.Equal(b, page(2)) {
		t.Errorf("page 1 reads as %d, %v", b[0], err)
	}
	if err := d.WriteDirty(page(1), mib); err == nil {
		t.Error("a page past the end was taken")
	}
	if err := d.Commit(parent); err != nil {
		t.Fatal(err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	defer d.Close()

	img := open(t, c, "snap_new", child{Pattern: parent, written: d.Ranges()})
	tt := start(t, serve(t, c, "sb_new", img), img, pagertest.Setup{})
	for off, want := range map[int64]byte{0: 1, 4096: 2, 2 * 4096: 0, 3 * 4096: 0, 4 * 4096: 3, 100 * 4096: 4, 120 * 4096: 0} {
		if a := ask(t, tt, pagertest.Order{Do: "read", Off: off, Len: 1}); a.Byte != want {
			t.Errorf("the page at %#x reads as %d, want %d", off, a.Byte, want)
		}
	}
	for _, r := range [][2]int64{{5, 100}, {101, 120}, {121, 256}} {
		a := ask(t, tt, pagertest.Order{Do: "check", Off: r[0] * 4096, Len: (r[1] - r[0]) * 4096, Pattern: parent})
		if a.Wrong > 0 {
			t.Errorf("of what was not written, %d pages are not the parent's", a.Wrong)
		}
	}
}

// child is the memory of a snapshot over its parent's. What was written must come from the draft: here it fails.
type child struct {
	pagertest.Pattern
	written []pager.Range
}

func (c child) Run(off int64) (int64, bool) {
	length, zero := c.Pattern.Run(off)
	for _, r := range c.written {
		if off >= r.Off && off < r.Off+r.Len {
			return r.Off + r.Len - off, r.Zero
		}
		if off < r.Off {
			return min(length, r.Off-off), zero
		}
	}
	return length, zero
}

func TestAnAbortedDraftLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t)
	c := newCache(t, pager.Config{Dir: dir})
	d, err := c.BeginDraft("snap_gone", mib)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteDirty(bytes.Repeat([]byte{1}, 64<<10), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Abort(), d.Abort()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 || c.Stats().CachedBytes != 0 {
		t.Errorf("%v is left, %d bytes are counted", left, c.Stats().CachedBytes)
	}
	if err := d.WriteDirty(make([]byte, 4096), 0); !errors.Is(err, pager.ErrClosed) {
		t.Errorf("a write after the end: %v", err)
	}
}

func TestThreadsDoNotGrowWithTheNumberOfVMs(t *testing.T) {
	c := newCache(t, pager.Config{})
	threads := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	before := threads()
	for i := range 200 {
		img := open(t, c, "snap_many", pagertest.Pattern{Bytes: mib})
		s := serve(t, c, fmt.Sprintf("sb_%d", i), img)
		m, fd, err := pagertest.Prepare(pagertest.Setup{Size: mib, Socket: s.Socket(), Anonymous: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd); unix.Munmap(m) })
		<-s.Connected()
	}
	if got := threads() - before; got > 10 {
		t.Errorf("200 sessions took %d threads", got)
	}
}

func TestWhatIsWrongIsRefused(t *testing.T) {
	t.Parallel()
	c := newCache(t, pager.Config{})
	if _, err := c.Open("../etc", pagertest.Pattern{Bytes: mib}, nil); err == nil {
		t.Error("a key with a slash was taken")
	}
	if _, err := c.Open("snap", pagertest.Pattern{Bytes: 4097}, nil); err == nil {
		t.Error("a size of no whole pages was taken")
	}
	open(t, c, "snap", pagertest.Pattern{Bytes: mib})
	if _, err := c.Open("snap", pagertest.Pattern{Bytes: 2 * mib}, nil); err == nil {
		t.Error("another size for the same key was taken")
	}
	if _, err := c.BeginDraft("snap", mib); !errors.Is(err, pager.ErrInUse) {
		t.Errorf("a draft of an image that is there: %v", err)
	}
	if _, err := pager.NewCache(pager.Config{Dir: t.TempDir()}); err == nil {
		t.Error("a directory that is not on tmpfs was taken")
	}
}
