package pager_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/pager/pagertest"
)

const mib = 1 << 20

// tmpfs returns a directory on tmpfs that must be empty again in the end.
func tmpfs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "covey-pager-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newCache(t *testing.T, conf pager.Config) *pager.Cache {
	t.Helper()
	if conf.Dir == "" {
		conf.Dir = tmpfs(t)
	}
	c, err := pager.NewCache(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func open(t *testing.T, c *pager.Cache, key string, src pager.Source, workingSet ...int64) *pager.Image {
	t.Helper()
	img, err := c.Open(key, src, workingSet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(img.Release)
	return img
}

func serve(t *testing.T, c *pager.Cache, id string, img *pager.Image) *pager.Session {
	t.Helper()
	s, err := c.Serve(t.Context(), id, img, filepath.Join(t.TempDir(), "s"), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// start starts a toucher of the session's memory.
func start(t *testing.T, s *pager.Session, img *pager.Image, setup pagertest.Setup) *pagertest.Toucher {
	t.Helper()
	setup.Size, setup.Socket = img.Size(), s.Socket()
	file := img.File()
	if setup.Anonymous {
		file = nil
	}
	tt, err := pagertest.Start(context.Background(), setup, file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tt.Close)
	return tt
}

func ask(t *testing.T, tt *pagertest.Toucher, o pagertest.Order) pagertest.Answer {
	t.Helper()
	a, err := tt.Ask(o)
	if err != nil {
		t.Fatalf("%s at %#x: %v", o.Do, o.Off, err)
	}
	return a
}

func checkAll(t *testing.T, tt *pagertest.Toucher, p pagertest.Pattern, threads int) {
	t.Helper()
	a := ask(t, tt, pagertest.Order{Do: "check", Len: p.Bytes, Pattern: p, Threads: threads})
	if a.Wrong > 0 {
		t.Errorf("%d pages are not what the source has, one of them at %#x", a.Wrong, a.First)
	}
}

// slow is a source that is not local.
type slow struct {
	pagertest.Pattern
	from string
	// gate, if not nil, holds up reads of the range until it is closed.
	low, to int64
	gate    chan struct{}
	err     error
}

func (s slow) Local(int64, int64) bool { return false }

func (s slow) ReadAt(ctx context.Context, p []byte, off int64) (string, error) {
	if off < s.to && off+int64(len(p)) > s.low {
		if s.gate != nil {
			select {
			case <-s.gate:
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		}
		if s.err != nil {
			return "", s.err
		}
	}
	s.Pattern.ReadAt(ctx, p, off)
	return s.from, nil
}

func TestEveryPageIsWhatTheSourceHas(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 1, Bytes: 16 * mib, Zeros: 3}
	for name, setup := range map[string]pagertest.Setup{
		"mapped privately": {}, "anonymous": {Anonymous: true}, "anonymous, with removes, in four regions": {Anonymous: true, Removes: true, Regions: 4},
	} {
		for _, around := range []int64{pager.PageSize, 64 << 10} {
			c := newCache(t, pager.Config{Around: around})
			img := open(t, c, "snap_1", p)
			s := serve(t, c, "sb_1", img)
			checkAll(t, start(t, s, img, setup), p, 4)
			if err := s.Err(); err != nil {
				t.Errorf("%s, %d around: %v", name, around, err)
			}
		}
	}
}

func TestManyClonesTouchingAtRandomSeeTheSourceAndShareItsPages(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 2, Bytes: 8 * mib, Zeros: 4}
	c := newCache(t, pager.Config{})
	var wg sync.WaitGroup
	for i := range 12 {
		var src pager.Source = p
		if i%2 == 0 {
			src = slow{Pattern: p, from: "registry"}
		}
		img := open(t, c, "snap_shared", src)
		s := serve(t, c, "sb_"+string(rune('a'+i)), img)
		tt := start(t, s, img, pagertest.Setup{Anonymous: i%3 == 2})
		wg.Go(func() { checkAll(t, tt, p, 3) })
	}
	wg.Wait()
	st := c.Stats()
	if data := p.Bytes * 3 / 4; st.CachedBytes != data {
		t.Errorf("the file takes %d bytes, want the %d that are not zeros", st.CachedBytes, data)
	}
	var read int64
	for _, s := range st.Sources {
		if s.Source == "local" || s.Source == "registry" {
			read += s.Bytes
		}
	}
	if read != st.CachedBytes {
		t.Errorf("%d bytes were read from sources for %d bytes of pages: fills were not single", read, st.CachedBytes)
	}
	t.Logf("%+v", st)
}

func TestWritesStayPrivateAndAreExactlyTheDirtyPages(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 3, Bytes: 4 * mib, Zeros: 2}
	c := newCache(t, pager.Config{})
	img := open(t, c, "snap_w", p)
	writer := start(t, serve(t, c, "sb_w", img), img, pagertest.Setup{})
	reader := start(t, serve(t, c, "sb_r", img), img, pagertest.Setup{})
	checkAll(t, writer, p, 2) // every page is mapped, from the file or as zeros
	want := []pager.Range{{Off: 0, Len: 4096}, {Off: 17 * 4096, Len: 2 * 4096}, {Off: 600 * 4096, Len: 4096}}
	for _, r := range want {
		ask(t, writer, pagertest.Order{Do: "write", Off: r.Off, Len: r.Len, Byte: 0x5a})
	}
	checkAll(t, reader, p, 2)
	for name, dirtyPages := range map[string]func(int, uint64, uint64, func(int64, int64) error) error{
		"with PAGEMAP_SCAN": pager.DirtyPages, "without": pager.DirtyPagesSlowly,
	} {
		var got []pager.Range
		err := dirtyPages(writer.PID(), writer.Base, uint64(p.Bytes), func(off, n int64) error {
			got = append(got, pager.Range{Off: off, Len: n})
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s, dirty pages are %v (%v), want %v", name, got, err, want)
		}
	}
	for _, r := range want {
		b := make([]byte, r.Len)
		if err := pager.ReadMemory(writer.PID(), writer.Base+uint64(r.Off), b); err != nil || b[0] != 0x5a || b[len(b)-1] != 0x5a {
			t.Errorf("dirty range %v reads as %#x...%#x, %v", r, b[0], b[len(b)-1], err)
		}
	}
	mapped, err := pager.FindMapping(writer.PID(), img.File())
	if err != nil || len(mapped) != 1 || mapped[0].Base != writer.Base || mapped[0].Size != uint64(p.Bytes) {
		t.Errorf("the mapping is %+v, %v", mapped, err)
	}
}

func TestZerosTakeNoSpace(t *testing.T) {
	t.Parallel()
	c := newCache(t, pager.Config{})
	img, err := c.Zeros(64 * mib)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(img.Release)
	s := serve(t, c, "sb_zero", img)
	tt := start(t, s, img, pagertest.Setup{})
	checkAll(t, tt, pagertest.Pattern{Bytes: img.Size(), Zeros: -1}, 1)
	if got := c.Stats().CachedBytes; got != 0 {
		t.Errorf("the file takes %d bytes", got)
	}
}

func TestAPageThatCannotBeReadFailsThatVMWithTheReason(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 5, Bytes: 4 * mib}
	broken := slow{Pattern: p, from: "local", low: mib, to: mib + 4096, err: errors.New("build 00ff: frame 3: checksum mismatch")}
	c := newCache(t, pager.Config{})
	img := open(t, c, "snap_broken", broken)
	s := serve(t, c, "sb_broken", img)
	tt := start(t, s, img, pagertest.Setup{})
	// The neighbours that the same fill was for can be had.
	ask(t, tt, pagertest.Order{Do: "read", Off: mib + 8192, Len: 1})
	if err := s.Err(); err != nil {
		t.Fatalf("a neighbour's failure failed the session: %v", err)
	}
	if err := tt.Give(pagertest.Order{Do: "read", Off: mib, Len: 1}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Failed():
	case <-time.After(time.Minute):
		t.Fatal("the session has not failed")
	}
	if got, want := s.Err().Error(), "memory of snap_broken at offset 0x100000: build 00ff: frame 3: checksum mismatch"; got != want {
		t.Errorf("the reason is %q, want %q", got, want)
	}
	// Once the source is repaired, the next VM has the page.
	again := open(t, c, "snap_broken", p)
	checkAll(t, start(t, serve(t, c, "sb_after", again), again, pagertest.Setup{}), p, 2)
}

func TestASourceThatDoesNotAnswerDelaysOnlyWhoNeedsIt(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 6, Bytes: 8 * mib}
	gate := make(chan struct{})
	c := newCache(t, pager.Config{Workers: 2})
	var waiting []*pagertest.Toucher
	stuck := slow{Pattern: p, from: "registry", to: 2 * mib, gate: gate}
	for i := range 6 {
		img := open(t, c, "snap_stuck", stuck)
		tt := start(t, serve(t, c, "sb_stuck"+string(rune('a'+i)), img), img, pagertest.Setup{})
		if err := tt.Give(pagertest.Order{Do: "read", Off: int64(i) * 64 << 10, Len: 1}); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, tt)
	}
	img := open(t, c, "snap_quick", p)
	checkAll(t, start(t, serve(t, c, "sb_quick", img), img, pagertest.Setup{}), p, 4)
	close(gate)
	for _, tt := range waiting {
		if _, err := tt.Take(); err != nil {
			t.Error(err)
		}
	}
}

func TestFaultsOfAVMWhoseStarterIsGoneAreServedFromItsOwnSource(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 7, Bytes: mib}
	c := newCache(t, pager.Config{})
	stuck := slow{Pattern: p, from: "peer", to: mib, gate: make(chan struct{})}
	first, err := c.Open("snap_x", stuck, nil)
	if err != nil {
		t.Fatal(err)
	}
	s1, err := c.Serve(t.Context(), "sb_x1", first, filepath.Join(t.TempDir(), "s"), 0)
	if err != nil {
		t.Fatal(err)
	}
	t1 := start(t, s1, first, pagertest.Setup{})
	if err := t1.Give(pagertest.Order{Do: "read", Len: 1}); err != nil {
		t.Fatal(err)
	}
	second := open(t, c, "snap_x", p)
	t2 := start(t, serve(t, c, "sb_x2", second), second, pagertest.Setup{})
	if err := t2.Give(pagertest.Order{Do: "check", Len: mib, Pattern: p}); err != nil {
		t.Fatal(err)
	}
	t1.Close()
	if err := s1.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.Release()
	if a, err := t2.Take(); err != nil || a.Wrong > 0 {
		t.Errorf("%d pages are wrong, %v", a.Wrong, err)
	}
}

func TestAVMKilledInTheMiddleOfAFaultLeavesNothing(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 8, Bytes: mib}
	gate := make(chan struct{})
	dir := tmpfs(t)
	c := newCache(t, pager.Config{Dir: dir})
	for _, anonymous := range []bool{false, true} {
		img, err := c.Open("snap_k", slow{Pattern: p, from: "peer", to: mib, gate: gate}, nil)
		if err != nil {
			t.Fatal(err)
		}
		socket := filepath.Join(t.TempDir(), "s")
		s, err := c.Serve(t.Context(), "sb_k", img, socket, 0)
		if err != nil {
			t.Fatal(err)
		}
		tt := start(t, s, img, pagertest.Setup{Anonymous: anonymous})
		if err := tt.Give(pagertest.Order{Do: "read", Len: 1}); err != nil {
			t.Fatal(err)
		}
		<-s.Connected()
		tt.Close()
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		img.Release()
		if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	}
	c.Drop("snap_k")
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

func TestWhatAnAnonymousVMDiscardsComesBackAsZeros(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 9, Bytes: 4 * mib}
	c := newCache(t, pager.Config{})
	img := open(t, c, "snap_d", p)
	s := serve(t, c, "sb_d", img)
	tt := start(t, s, img, pagertest.Setup{Anonymous: true, Removes: true})
	for i := range int64(8) {
		off := i * 256 << 10
		ask(t, tt, pagertest.Order{Do: "read", Off: off, Len: 1})
		ask(t, tt, pagertest.Order{Do: "discard", Off: off, Len: 16 << 10})
		zero := pagertest.Pattern{Bytes: p.Bytes, Zeros: -1}
		if a := ask(t, tt, pagertest.Order{Do: "check", Off: off, Len: 16 << 10, Pattern: zero}); a.Wrong > 0 {
			t.Errorf("%d discarded pages at %#x are not zeros", a.Wrong, off)
		}
		if a := ask(t, tt, pagertest.Order{Do: "check", Off: off + 16<<10, Len: 240 << 10, Pattern: p}); a.Wrong > 0 {
			t.Errorf("%d pages beside the discarded ones are wrong", a.Wrong)
		}
	}
	if got := c.Stats().Removed; got != 8 {
		t.Errorf("%d removes were counted, want 8", got)
	}
}

func TestFaultsAreServedWhileOtherThreadsDiscard(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 10, Bytes: 16 * mib, Zeros: 5}
	c := newCache(t, pager.Config{Workers: 3})
	for i, src := range []pager.Source{p, slow{Pattern: p, from: "peer"}} {
		img := open(t, c, "snap_c", src)
		s := serve(t, c, "sb_c"+string(rune('a'+i)), img)
		tt := start(t, s, img, pagertest.Setup{Anonymous: true, Removes: true})
		a := ask(t, tt, pagertest.Order{Do: "churn", Len: p.Bytes, Pattern: p, Threads: 8, Byte: 3})
		if a.Wrong > 0 {
			t.Errorf("%d chunks are not as they should be, one of them at %#x", a.Wrong, a.First)
		}
		if err := s.Err(); err != nil {
			t.Error(err)
		}
	}
	if st := c.Stats(); st.Removed != 512 {
		t.Errorf("%d removes were counted, want 512; %d faults were retried", st.Removed, st.Retried)
	} else {
		t.Logf("%d faults were retried", st.Retried)
	}
}

func TestHandshakesThatAreWrongAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	c := newCache(t, pager.Config{})
	for name, h := range map[string]struct{ text, want string }{
		"no regions": {`[]`, "must have 1 to 64 regions, got 0"},
		"not JSON":   {`{"a":1}`, "cannot unmarshal object"},
		"past the end": {`[{"base_host_virt_addr":4096,"size":1048576,"offset":4096,"page_size":4096}]`,
			"region 0: ends past the image, which is of 1048576 bytes"},
		"huge pages": {`[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size_kib":2097152}]`, "page_size must be 4096, got 2097152"},
		"unaligned":  {`[{"base_host_virt_addr":4097,"size":4096,"offset":0,"page_size":4096}]`, "must be multiples of 4096"},
		"overlap": {`[{"base_host_virt_addr":4096,"size":8192,"offset":0,"page_size":4096},` +
			`{"base_host_virt_addr":8192,"size":4096,"offset":8192,"page_size":4096}]`, "regions 0 and 1 overlap"},
		"no descriptor": {`[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096}]`, "must carry one userfaultfd, got 0"},
	} {
		t.Run(name, func(t *testing.T) {
			img := open(t, c, "snap_h", pagertest.Pattern{Bytes: mib})
			s := serve(t, c, "sb_h", img)
			if err := pagertest.HandOver(s.Socket(), -1, h.text); err != nil {
				t.Fatal(err)
			}
			select {
			case <-s.Failed():
			case <-time.After(time.Minute):
				t.Fatal("it was not refused")
			}
			if got := s.Err().Error(); !strings.Contains(got, h.want) {
				t.Errorf("the reason is %q, want %q", got, h.want)
			}
		})
	}
}
