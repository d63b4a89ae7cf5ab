package firecracker_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/payload"
	"github.com/coveyhq/covey/hostagent/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	actScripted()
	vmmtest.Main(newDriver)
	goleak.VerifyTestMain(m)
}

const (
	binaryVariable = "COVEY_FIRECRACKER_BIN"
	diskBytes      = 1 << 20
	patience       = time.Minute
	firstUID       = 250000
)

// realBinary is a real Firecracker, or ends the test with the sentence what to do.
func realBinary(t *testing.T) string {
	t.Helper()
	binary := os.Getenv(binaryVariable)
	if binary == "" {
		const missing = binaryVariable + " is not set: set it to the path of a firecracker binary (see docs/kvm.md)"
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "kvm") {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skipf("Firecracker needs KVM: %v", err)
	}
	if os.Getuid() != 0 {
		t.Fatal("VMs run as users of their own: run this test as root")
	}
	return binary
}

// lab has what payloads are run with.
type lab struct {
	t      *testing.T
	driver *firecracker.Driver
	cache  *pager.Cache
	dir    string
	kernel string
	last   atomic.Int32
}

func newLab(t *testing.T, change func(*firecracker.Config)) *lab {
	t.Helper()
	conf := firecracker.Config{Binary: realBinary(t), NoJailer: true, Timeout: 20 * time.Second, Trace: checked(t)}
	if testing.Verbose() {
		conf.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if change != nil {
		change(&conf)
	}
	l := &lab{t: t, dir: t.TempDir()}
	var err error
	if l.driver, err = firecracker.New(conf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.driver.Close() })
	t.Logf("%+v, jailer %q", l.driver.Capabilities(), l.driver.Jailer())
	pages, err := os.MkdirTemp("/dev/shm", "covey-firecracker-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(pages) })
	if l.cache, err = pager.NewCache(pager.Config{Dir: pages}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.cache.Close(); err != nil {
			t.Error(err)
		}
	})
	l.kernel = filepath.Join(l.dir, "kernel")
	if err := os.WriteFile(l.kernel, payload.ELF(), 0o644); err != nil {
		t.Fatal(err)
	}
	return l
}

// guest is a VM with the payload in it.
type guest struct {
	vmm.VM
	t       *testing.T
	lab     *lab
	cfg     vmm.Config
	session *pager.Session
}

// place makes the surroundings of a VM: a TAP device in a namespace of its own, a disk, and a pager where there is an image.
func (l *lab) place(t *testing.T, from *memory) *guest {
	t.Helper()
	n := int(l.last.Add(1))
	g := &guest{t: t, lab: l}
	dir := filepath.Join(l.dir, fmt.Sprint("vm", n))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tap := fmt.Sprint("tap", n)
	g.cfg = vmm.Config{
		ID: fmt.Sprint("sb_", n), RunDir: dir, VCPUs: 1, MemoryBytes: payload.MemoryBytes, Kernel: l.kernel,
		DiskPath: filepath.Join(dir, "disk"), NetNS: newNetNS(t, tap), TapName: tap, MAC: "06:00:AC:10:00:02",
		ConsolePath: filepath.Join(l.dir, fmt.Sprint("console", n)), UID: firstUID + n, GID: firstUID + n,
		PagerSocket: filepath.Join(dir, "pager.sock"),
	}
	if err := os.WriteFile(g.cfg.DiskPath, make([]byte, diskBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(g.cfg.DiskPath, g.cfg.UID, g.cfg.GID); err != nil {
		t.Fatal(err)
	}
	if from == nil {
		g.cfg.PagerSocket = ""
	} else {
		image, err := l.cache.Open(from.name, from, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(image.Release)
		if g.session, err = l.cache.Serve(t.Context(), g.cfg.ID, image, g.cfg.PagerSocket, g.cfg.UID); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := g.session.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	return g
}

func (g *guest) own(vm vmm.VM, err error) *guest {
	g.t.Helper()
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.console())
	}
	g.VM = vm
	g.t.Cleanup(func() {
		if err := vm.Kill(context.Background()); err != nil {
			g.t.Error(err)
		}
	})
	return g
}

func (l *lab) boot(t *testing.T, cmdline string) *guest {
	t.Helper()
	g := l.place(t, nil)
	g.cfg.Cmdline = cmdline
	vm, err := l.driver.Boot(t.Context(), g.cfg)
	return g.own(vm, err)
}

func (l *lab) restore(t *testing.T, from *memory, state string) *guest {
	t.Helper()
	g := l.place(t, from)
	vm, err := l.driver.Restore(t.Context(), g.cfg, state)
	return g.own(vm, err)
}

func (g *guest) console() string {
	b, _ := os.ReadFile(g.cfg.ConsolePath)
	return string(b)
}

var counts = regexp.MustCompile(`T([0-9a-f]{16})\n`)

// count is the last count that the guest has printed; what it found wrong ends the test.
func (g *guest) count() uint64 {
	g.t.Helper()
	text := g.console()
	if strings.Contains(text, "B0") {
		g.t.Fatalf("the guest has found its memory changed:\n%s", text)
	}
	all := counts.FindAllStringSubmatch(text, -1)
	if len(all) == 0 {
		return 0
	}
	n, err := strconv.ParseUint(all[len(all)-1][1], 16, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// awaitCount waits until the guest has counted so far.
func (g *guest) awaitCount(n uint64) {
	g.t.Helper()
	eventually(g.t, fmt.Sprintf("the guest counts to %d", n), func() bool {
		select {
		case <-g.Done():
			g.t.Fatalf("the VM has ended: %s\n%s", g.Exit().Reason, g.console())
		default:
		}
		return g.count() >= n
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("after %v still not: %s", patience, what)
		}
	}
}

func (g *guest) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// save makes a snapshot on top of the memory that the VM was started from; nil: zeros. The VM stands still then.
func (g *guest) save(on *memory) (*memory, string) {
	g.t.Helper()
	g.must(g.Stop(g.t.Context()))
	n := g.lab.last.Add(1)
	state := filepath.Join(g.lab.dir, fmt.Sprint("state", n))
	g.must(g.SaveState(g.t.Context(), state))
	m := newMemory(fmt.Sprint("snap", n), on)
	bytes, err := g.SaveDirty(g.t.Context(), m)
	g.must(err)
	st, err := os.Stat(state)
	g.must(err)
	g.t.Logf("saved at count %d: state %d bytes, dirty %d KiB in %d ranges", m.count(), st.Size(), bytes>>10, m.ranges)
	return m, state
}

func TestAPayloadBootsIsSavedAndGoesOn(t *testing.T) {
	l := newLab(t, nil)
	checkLife(t, l)
}

func TestAJailedPayloadIsSavedAndGoesOn(t *testing.T) {
	l := newLab(t, func(c *firecracker.Config) { c.NoJailer = false })
	if l.driver.Jailer() == "" {
		t.Skip("there is no jailer of the same version beside firecracker, nor in the search path")
	}
	checkLife(t, l)
	checkCage(t, l)
}

// checkLife boots, saves fully, restores through the pager, saves the difference, and restores that.
func checkLife(t *testing.T, l *lab) {
	first := l.boot(t, "")
	first.awaitCount(20)
	if err := first.SaveState(t.Context(), filepath.Join(l.dir, "never")); !errors.Is(err, vmm.ErrNotStopped) {
		t.Errorf("saving a VM that runs: %v", err)
	}
	base, baseState := first.save(nil)
	base.check(t)
	first.checkFull(base)
	from := base.count()
	first.must(first.Kill(t.Context()))

	second := l.restore(t, base, baseState)
	if n := second.count(); n != 0 {
		t.Errorf("a restored guest runs before Cont: it has counted to %d", n)
	}
	second.must(second.Cont(t.Context()))
	second.awaitCount(from + 5)
	next, nextState := second.save(base)
	next.check(t)
	next.checkDirty(t, from)
	select {
	case <-second.session.Failed():
		t.Fatal(second.session.Err())
	default:
	}
	t.Logf("pages from: %+v", second.session.Sources())
	if private, err := second.PrivateBytes(); err != nil || private == 0 || private > payload.MemoryBytes {
		t.Errorf("private memory: %d bytes (%v)", private, err)
	}

	// It goes on after it was saved, and the next snapshot has what changed since its start and not since the last snapshot.
	second.must(second.Cont(t.Context()))
	second.awaitCount(next.count() + 3)
	third, thirdState := second.save(base)
	third.check(t)
	third.checkDirty(t, from)
	second.checkFull(third)
	second.must(second.Kill(t.Context()))

	for _, s := range []struct {
		m     *memory
		state string
	}{{next, nextState}, {third, thirdState}} {
		g := l.restore(t, s.m, s.state)
		g.must(g.Cont(t.Context()))
		g.awaitCount(s.m.count() + 2)
		if !strings.HasPrefix(strings.TrimPrefix(g.console(), "\n"), fmt.Sprintf("T%016x\n", s.m.count()+1)) && g.count() < s.m.count() {
			t.Errorf("after the count of %d the guest says\n%s", s.m.count(), g.console())
		}
	}
}

// checkFull has Firecracker write all of its memory, by a full snapshot of the same instant, and compares it with what was made of the
// dirty pages and what the VM was started from.
func (g *guest) checkFull(m *memory) {
	g.t.Helper()
	c, err := api.Dial(g.t.Context(), g.Handle().Control, checked(g.t))
	g.must(err)
	defer c.Close()
	g.must(c.Do(g.t.Context(), "PUT", "/snapshot/create", api.SnapshotCreate{SnapshotType: api.Full, SnapshotPath: "/vm/full.state", MemFilePath: "/vm/full"},
		nil, patience))
	full, err := os.ReadFile(filepath.Join(g.cfg.RunDir, "vm", "full"))
	g.must(err)
	if len(full) != len(m.b) {
		g.t.Fatalf("the full snapshot has %d bytes, want %d", len(full), len(m.b))
	}
	for off := 0; off < len(full); off += payload.Page {
		if !bytes.Equal(full[off:off+payload.Page], m.b[off:off+payload.Page]) {
			g.t.Errorf("page %#x is not what the full snapshot has", off)
		}
	}
}

// memory is a memory image, and what of it was handed over last. It serves as pager.Source and vmm.DirtyWriter.
type memory struct {
	name   string
	b      []byte
	dirty  map[int64]bool // offsets of pages
	ranges int
}

func newMemory(name string, on *memory) *memory {
	m := &memory{name: name, b: make([]byte, payload.MemoryBytes), dirty: map[int64]bool{}}
	if on != nil {
		copy(m.b, on.b)
	}
	return m
}

func (m *memory) Size() int64 { return int64(len(m.b)) }

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) (string, error) {
	copy(p, m.b[off:])
	return "local", nil
}

func (m *memory) Run(off int64) (int64, bool) {
	zero := func(off int64) bool {
		return len(bytes.Trim(m.b[off:off+payload.Page], "\x00")) == 0
	}
	first, n := zero(off), int64(payload.Page)
	for off+n < m.Size() && zero(off+n) == first && n < 1<<20 {
		n += payload.Page
	}
	return n, first
}

func (m *memory) WriteDirty(p []byte, off int64) error {
	if off%payload.Page != 0 || len(p)%payload.Page != 0 {
		return fmt.Errorf("%d bytes at %d are not whole pages", len(p), off)
	}
	copy(m.b[off:], p)
	for at := range int64(len(p)) / payload.Page {
		if m.dirty[off+at*payload.Page] {
			return fmt.Errorf("page %#x comes twice", off+at*payload.Page)
		}
		m.dirty[off+at*payload.Page] = true
	}
	m.ranges++
	return nil
}

func (m *memory) word(off int64) uint64 { return binary.LittleEndian.Uint64(m.b[off:]) }
func (m *memory) count() uint64         { return m.word(payload.Counter) }

// check checks every page that the payload writes.
func (m *memory) check(t *testing.T) {
	t.Helper()
	n := m.count()
	if n == 0 {
		t.Fatal("the counter is not in the snapshot")
	}
	for i := range payload.PatternPages {
		_, pattern := payload.Expect(n, i)
		for at := int64(0); at < payload.Page; at += 8 {
			if got := m.word(payload.Patterns + int64(i)*payload.Page + at); got != pattern {
				t.Fatalf("pattern %d has %#x at %d, want %#x", i, got, at, pattern)
			}
		}
	}
	// The guest may have been stopped between the counter and the ring.
	for i := range payload.RingPages {
		ring, _ := payload.Expect(n, i)
		before, _ := payload.Expect(n-1, i)
		if got := m.word(payload.Ring + int64(i)*payload.Page); got != ring && got != before {
			t.Errorf("at count %d page %d of the ring holds %d, want %d", n, i, got, ring)
		}
	}
}

// checkDirty checks that exactly the pages that the payload wrote since a count were handed over, of those that are its own.
func (m *memory) checkDirty(t *testing.T, since uint64) {
	t.Helper()
	want := map[int64]bool{payload.Counter: true}
	for i := range payload.Written(since, m.count()) {
		want[payload.Ring+int64(i)*payload.Page] = true
	}
	last := payload.Ring + int64(m.count()%payload.RingPages)*payload.Page
	first := payload.Ring + int64(since%payload.RingPages)*payload.Page
	for off := range want {
		if !m.dirty[off] && off != last {
			t.Errorf("page %#x was written since count %d and is not among the dirty ones", off, since)
		}
	}
	for off := range m.dirty {
		if off >= payload.Counter && !want[off] && off != first {
			t.Errorf("page %#x is among the dirty ones, though nobody wrote it since count %d", off, since)
		}
	}
	if extra := len(m.dirty) - len(want); extra > 64 {
		t.Errorf("%d pages that are not the payload's are among the dirty ones", extra)
	}
}

func TestAGuestsEndIsTold(t *testing.T) {
	l := newLab(t, nil)
	for cmdline, want := range map[string]string{"!": "the guest rebooted", "#": "the guest powered off"} {
		g := l.boot(t, cmdline)
		select {
		case <-g.Done():
		case <-time.After(patience):
			t.Fatalf("%q: the VM has not ended\n%s", cmdline, g.console())
		}
		if e := g.Exit(); e.Code != 0 || e.Signal != 0 || !strings.Contains(e.Reason, want) {
			t.Errorf("%q: its end is %+v, want %q", cmdline, e, want)
		}
		if n := strings.Count(g.console(), "T"); n < 3 {
			t.Errorf("%q: the console has not what the guest said last:\n%s", cmdline, g.console())
		}
		isGone(t, g.VM)
	}
}

// isGone checks that every method says so.
func isGone(t *testing.T, vm vmm.VM) {
	t.Helper()
	_, dirtyErr := vm.SaveDirty(t.Context(), newMemory("never", nil))
	_, privateErr := vm.PrivateBytes()
	for name, err := range map[string]error{
		"Stop": vm.Stop(t.Context()), "Cont": vm.Cont(t.Context()), "SaveState": vm.SaveState(t.Context(), "/never"),
		"SaveDirty": dirtyErr, "PrivateBytes": privateErr,
	} {
		if !errors.Is(err, vmm.ErrGone) {
			t.Errorf("%s of a VM that is gone: %v", name, err)
		}
	}
	if err := vm.Kill(t.Context()); err != nil {
		t.Errorf("Kill of a VM that is gone: %v", err)
	}
}

func TestARealVMMIsCaged(t *testing.T) { checkCage(t, newLab(t, nil)) }

func checkCage(t *testing.T, l *lab) {
	g := l.boot(t, "")
	g.awaitCount(1)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.Handle().PID))
	g.must(err)
	for _, want := range []string{fmt.Sprintf("Uid:\t%d", g.cfg.UID), "CapEff:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("it has not %q in\n%s", want, status)
		}
	}
	t.Logf("seccomp: %v", regexp.MustCompile(`Seccomp:\t\d`).FindString(string(status)))
	m, err := g.VM.(*firecracker.VM).Metrics(t.Context())
	if err != nil || m["vcpu.exit_io_out"] == 0 {
		t.Errorf("metrics: %v (%v)", m, err)
	}
}

func TestARealVMMIsReopened(t *testing.T) {
	l := newLab(t, nil)
	g := l.place(t, nil)
	vm, err := l.driver.Boot(t.Context(), g.cfg)
	g.must(err)
	g.VM = vm
	g.awaitCount(3)
	h := g.Handle()
	// The first agent goes away.
	g.must(l.driver.Close())
	other, err := firecracker.New(firecracker.Config{Binary: realBinary(t), NoJailer: true, Timeout: 20 * time.Second})
	g.must(err)
	t.Cleanup(func() { other.Close() })
	vm, err = other.Reopen(t.Context(), g.cfg, h)
	g.own(vm, err)
	if got := vm.Handle(); got != h {
		t.Errorf("its handle is %+v, was %+v", got, h)
	}
	g.awaitCount(g.count() + 3)
	m, _ := g.save(nil)
	m.check(t)
	g.must(unix.Kill(h.PID, unix.SIGKILL))
	select {
	case <-vm.Done():
	case <-time.After(patience):
		t.Fatal("the VM has not ended")
	}
	isGone(t, vm)
	if _, err := other.Reopen(t.Context(), g.cfg, h); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("reopening a VM that is gone: %v", err)
	}
}

// TestMemoryIsServedByAnotherAgent: the userfaultfd of a real Firecracker is taken back by a pager that did not do its handshake.
func TestMemoryIsServedByAnotherAgent(t *testing.T) {
	l := newLab(t, nil)
	first := l.boot(t, "")
	first.awaitCount(5)
	base, state := first.save(nil)
	first.must(first.Kill(t.Context()))

	pages, err := os.MkdirTemp("/dev/shm", "covey-firecracker-test-")
	first.must(err)
	t.Cleanup(func() { os.RemoveAll(pages) })
	g := l.place(t, nil)
	g.cfg.PagerSocket = filepath.Join(g.cfg.RunDir, "pager.sock")
	agent := func() (*pager.Cache, *pager.Image) {
		c, err := pager.NewCache(pager.Config{Dir: pages})
		g.must(err)
		image, err := c.Open(base.name, base, nil)
		g.must(err)
		return c, image
	}
	cache, image := agent()
	_, err = cache.Serve(t.Context(), g.cfg.ID, image, g.cfg.PagerSocket, g.cfg.UID)
	g.must(err)
	vm, err := l.driver.Restore(t.Context(), g.cfg, state)
	g.own(vm, err)
	g.must(cache.Close()) // the agent goes away, and the guest waits for its next page
	image.Release()
	g.must(g.Cont(t.Context()))

	cache, image = agent()
	session, err := cache.TakeBack(t.Context(), g.cfg.ID, image, g.cfg.PagerSocket, g.cfg.UID, g.Handle().PID)
	g.must(err)
	g.awaitCount(base.count() + payload.PatternPages + 1) // by then it has read every page of patterns
	g.must(g.Kill(t.Context()))
	g.must(session.Close(context.Background()))
	image.Release()
	g.must(cache.Close())
}
