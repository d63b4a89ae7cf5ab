package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/cpu"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// world is a host made of fakes: it counts what is held, fails or stops at named points, and remembers the order of calls.
type world struct {
	mu    sync.Mutex // guards all below
	held  map[string]int
	fail  map[string]error
	gate  map[string]chan struct{}
	hit   map[string]chan struct{}
	calls []string
	snaps map[string]Manifest
	vms   map[string]*fakeVM
	lazy  bool
	// memory is the session that was opened last.
	memory *fakeMemory
	keep   int
	// cpu is what every VMM has used.
	cpu    time.Duration
	queued time.Duration // for a CPU
}

func newWorld() *world {
	return &world{
		held: map[string]int{}, fail: map[string]error{}, gate: map[string]chan struct{}{}, hit: map[string]chan struct{}{},
		snaps: map[string]Manifest{}, vms: map[string]*fakeVM{}, lazy: true,
	}
}

// at passes a point: it is noted, may block until its gate is opened, and may fail.
func (w *world) at(ctx context.Context, point string) error {
	w.mu.Lock()
	w.calls = append(w.calls, point)
	gate, hit, err := w.gate[point], w.hit[point], w.fail[point]
	delete(w.hit, point)
	w.mu.Unlock()
	if hit != nil {
		close(hit)
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

// block makes a point block; reached is closed when somebody is there, open lets all go on.
func (w *world) block(point string) (reached chan struct{}, open func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gate, hit := make(chan struct{}), make(chan struct{})
	w.gate[point], w.hit[point] = gate, hit
	return hit, sync.OnceFunc(func() {
		w.mu.Lock()
		delete(w.gate, point)
		w.mu.Unlock()
		close(gate)
	})
}

func (w *world) failAt(point string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[point] = err
	if err == nil {
		delete(w.fail, point)
	}
}

func (w *world) take(kind string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held[kind] += n; w.held[kind] == 0 {
		delete(w.held, kind)
	}
}

func (w *world) holdings() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for _, k := range slices.Sorted(maps.Keys(w.held)) {
		list = append(list, fmt.Sprintf("%d %s", w.held[k], k))
	}
	return strings.Join(list, ", ")
}

func (w *world) count(point string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.calls {
		if c == point {
			n++
		}
	}
	return n
}

func (w *world) parts() Parts {
	return Parts{Driver: fakeDriver{w}, Slots: fakeSlots{w}, Cages: fakeCages{w}, Disks: fakeDisks{w}, Memories: fakeMemories{w}, Snapshots: fakeSnapshots{w}, Guests: fakeGuests{w}}
}

type noTracer struct{}

func (noTracer) Span(ctx context.Context, _ string, _ ...string) (context.Context, func(error)) {
	return ctx, func(error) {}
}

// host makes a host in dir; at the test's end nothing may be held.
func (w *world) host(t *testing.T, dir string) *Host {
	t.Helper()
	h, err := New(Config{
		ID: "host-a", RunDir: filepath.Join(dir, "run"), ConsoleDir: filepath.Join(dir, "console"), JournalDir: filepath.Join(dir, "journal"), SettingsDir: filepath.Join(dir, "settings"),
		Capacity: Room{VCPUs: 8, MemoryMB: 4096, DiskMB: 8192, Slots: 4}, Parallel: 4, Tick: time.Millisecond,
	}, w.parts(), noTracer{}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (w *world) newHost(t *testing.T) *Host {
	h := w.host(t, t.TempDir())
	t.Cleanup(func() {
		if err := h.Close(context.Background(), true); err != nil {
			t.Error(err)
		}
		if left := w.holdings(); left != "" {
			t.Errorf("left behind: %s", left)
		}
		if used := h.ledger.Used(); used != (Room{}) {
			t.Errorf("room still taken: %s", used)
		}
	})
	return h
}

type fakeSlots struct{ w *world }

func (f fakeSlots) Acquire(ctx context.Context, _ Network) (Slot, error) {
	if err := f.w.at(ctx, "slot"); err != nil {
		return nil, err
	}
	f.w.take("slot", 1)
	return fakeSlot(f), nil
}

func (f fakeSlots) Adopt(ctx context.Context, _ string, n Network) (Slot, error) {
	return f.Acquire(ctx, n)
}

type fakeSlot struct{ w *world }

func (fakeSlot) ID() string                      { return "1" }
func (fakeSlot) NetNS() string                   { return "/run/netns/1" }
func (fakeSlot) TAP() string                     { return "tap0" }
func (fakeSlot) MAC() string                     { return "06:00:AC:10:00:02" }
func (s fakeSlot) Release(context.Context) error { s.w.take("slot", -1); return nil }

type fakeCages struct{ w *world }

func (f fakeCages) Make(ctx context.Context, _ string, _ int, _ int64) (Cage, error) {
	if err := f.w.at(ctx, "cage"); err != nil {
		return nil, err
	}
	f.w.take("cage", 1)
	return fakeCage(f), nil
}

func (f fakeCages) Open(ctx context.Context, id string, v int, m int64) (Cage, error) {
	return f.Make(ctx, id, v, m)
}

type fakeCage struct{ w *world }

func (fakeCage) UID() int        { return 1 }
func (fakeCage) GID() int        { return 1 }
func (fakeCage) Procs() []string { return nil }
func (c fakeCage) CPUTime() (time.Duration, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	return c.w.cpu, nil
}
func (c fakeCage) Wanted() (map[int]time.Duration, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.calls = append(c.w.calls, "wanted")
	return map[int]time.Duration{1: c.w.cpu + c.w.queued, 2: time.Second}, nil
}
func (c fakeCage) Remove(context.Context) error { c.w.take("cage", -1); return nil }

type fakeDisks struct{ w *world }

func (f fakeDisks) Create(ctx context.Context, _ string, _ Base, _ int64, _ string, _ int) (Disk, error) {
	if err := f.w.at(ctx, "disk"); err != nil {
		return nil, err
	}
	f.w.take("disk", 1)
	return fakeDisk(f), nil
}

func (f fakeDisks) Reopen(ctx context.Context, id string, b Base, n int64, s string, u int) (Disk, error) {
	return f.Create(ctx, id, b, n, s, u)
}

type fakeDisk struct{ w *world }

func (fakeDisk) OverlayBytes() (int64, error)    { return 0, nil }
func (d fakeDisk) Discard(context.Context) error { d.w.take("disk", -1); return nil }

type fakeMemories struct{ w *world }

func (f fakeMemories) Open(ctx context.Context, _ string, b Base, _ int64, _ string, _ int) (Memory, error) {
	point := "zeros"
	if b != nil {
		point = "memory"
	}
	if err := f.w.at(ctx, point); err != nil {
		return nil, err
	}
	f.w.take("memory", 1)
	m := &fakeMemory{w: f.w, failed: make(chan struct{})}
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.memory = m
	return m, nil
}

func (f fakeMemories) Reopen(ctx context.Context, id string, b Base, n int64, s string, u, _ int) (Memory, error) {
	return f.Open(ctx, id, b, n, s, u)
}

type fakeMemory struct {
	w      *world
	failed chan struct{}
}

func (*fakeMemory) File() *os.File                { return nil }
func (*fakeMemory) Socket() string                { return "" }
func (m *fakeMemory) Failed() <-chan struct{}     { return m.failed }
func (*fakeMemory) Err() error                    { return ErrDamaged }
func (m *fakeMemory) Faulted() <-chan struct{}    { return nil }
func (*fakeMemory) Sources() []PageSource         { return nil }
func (m *fakeMemory) Close(context.Context) error { m.w.take("memory", -1); return nil }

type fakeSnapshots struct{ w *world }

func (f fakeSnapshots) Open(ctx context.Context, id string) (Base, error) {
	if err := f.w.at(ctx, "open "+id); err != nil {
		return nil, err
	}
	f.w.mu.Lock()
	m, ok := f.w.snaps[id]
	f.w.mu.Unlock()
	if !ok {
		return nil, ErrSnapshotNotFound
	}
	f.w.take("base", 1)
	return fakeBase{f.w, m, "/state"}, nil
}

func (f fakeSnapshots) OpenDisk(ctx context.Context, id string) (Base, error) {
	if err := f.w.at(ctx, "open the disk of "+id); err != nil {
		return nil, err
	}
	f.w.mu.Lock()
	m, ok := f.w.snaps[id]
	f.w.mu.Unlock()
	if !ok {
		return nil, ErrSnapshotNotFound
	}
	f.w.take("base", 1)
	return fakeBase{f.w, m, "/state"}, nil
}

func (f fakeSnapshots) OpenImage(_ context.Context, name string) (Base, error) {
	if name != "tiny" && name != "1" {
		return nil, ErrImageNotFound
	}
	f.w.take("base", 1)
	return fakeBase{f.w, Manifest{Image: "tiny", ImageID: "1", DiskBytes: 16 << 20}, ""}, nil
}

func (f fakeSnapshots) Draft(ctx context.Context, m Manifest, _ Memory, _ Disk) (Draft, error) {
	if err := f.w.at(ctx, "draft"); err != nil {
		return nil, err
	}
	f.w.take("draft", 1)
	return &fakeDraft{w: f.w, m: m, drop: sync.OnceFunc(func() { f.w.take("draft", -1) })}, nil
}

func (f fakeSnapshots) Remove(_ context.Context, id string) error {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	delete(f.w.snaps, id)
	return nil
}

func (f fakeSnapshots) Local() []string {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	return slices.Sorted(maps.Keys(f.w.snaps))
}

type fakeBase struct {
	w     *world
	m     Manifest
	state string
}

func (b fakeBase) Manifest() Manifest { return b.m }
func (b fakeBase) StatePath() string  { return b.state }
func (b fakeBase) Release()           { b.w.take("base", -1) }

type fakeDraft struct {
	w    *world
	m    Manifest
	drop func()
}

func (*fakeDraft) StatePath() string                    { return "/draft" }
func (*fakeDraft) WriteDirty([]byte, int64) error       { return nil }
func (d *fakeDraft) TakeDisk(ctx context.Context) error { return d.w.at(ctx, "take disk") }
func (d *fakeDraft) Abort(context.Context) error        { d.drop(); return nil }

func (d *fakeDraft) Commit(ctx context.Context) (Manifest, SaveStats, error) {
	if err := d.w.at(ctx, "commit"); err != nil {
		return Manifest{}, SaveStats{}, err
	}
	d.drop()
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.snaps[d.m.ID] = d.m
	return d.m, SaveStats{Stored: 1}, nil
}

type fakeGuests struct{ w *world }

func (f fakeGuests) Dial(Slot) (Guest, error) {
	f.w.take("guest", 1)
	return fakeGuest(f), nil
}

type fakeGuest struct{ w *world }

func (g fakeGuest) Ready(ctx context.Context) error { return g.w.at(ctx, "ready") }
func (g fakeGuest) AfterRestore(ctx context.Context, id Identity) (Attestation, error) {
	return Attestation{MachineID: id.MachineID, Hostname: id.Hostname}, g.w.at(ctx, "after restore")
}
func (g fakeGuest) Warm(ctx context.Context) error { return g.w.at(ctx, "warm") }
func (g fakeGuest) Sync(ctx context.Context) error { return g.w.at(ctx, "sync") }
func (g fakeGuest) Close() error                   { g.w.take("guest", -1); return nil }
func (g fakeGuest) Metrics(ctx context.Context) (GuestMetrics, error) {
	g.w.mu.Lock()
	keep := g.w.keep
	g.w.mu.Unlock()
	return GuestMetrics{KeepAlive: keep}, g.w.at(ctx, "metrics")
}

type fakeDriver struct{ w *world }

func (d fakeDriver) Capabilities() vmm.Capabilities {
	return vmm.Capabilities{
		Driver: "fake", Machine: "m1", Machines: []string{"m1", "m0"}, CPUFeatures: []string{"aes", "popcnt"}, Accel: vmm.TCG, MaxVCPUs: 8, LazyMemory: d.w.lazy,
	}
}

func (d fakeDriver) CPU(baseline []string) vmm.CPU {
	all := []string{"aes", "popcnt"}
	c := vmm.CPU{Machine: "m1", Model: "fake", Features: cpu.Limit(all, baseline)}
	c.Masked = cpu.Minus(all, c.Features)
	return c
}

func (d fakeDriver) Boot(ctx context.Context, c vmm.Config) (vmm.VM, error) {
	return d.start(ctx, c, "boot")
}

func (d fakeDriver) Restore(ctx context.Context, c vmm.Config, _ string) (vmm.VM, error) {
	return d.start(ctx, c, "restore")
}

func (d fakeDriver) start(ctx context.Context, c vmm.Config, how string) (vmm.VM, error) {
	if err := d.w.at(ctx, how); err != nil {
		return nil, err
	}
	d.w.take("VM", 1)
	vm := &fakeVM{w: d.w, cpu: d.CPU(c.Baseline), done: make(chan struct{}), running: how == "boot"}
	if c.CPU != nil {
		vm.cpu = *c.CPU
	}
	d.w.mu.Lock()
	d.w.vms[c.ID] = vm
	d.w.mu.Unlock()
	return vm, nil
}

func (d fakeDriver) Reopen(ctx context.Context, c vmm.Config, _ vmm.Handle) (vmm.VM, error) {
	return d.start(ctx, c, "reopen")
}

type fakeVM struct {
	w       *world
	cpu     vmm.CPU
	done    chan struct{}
	mu      sync.Mutex // guards below
	running bool
	dead    bool
	reason  string
}

// die ends the VM as a crash does.
func (v *fakeVM) die(reason string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dead {
		return
	}
	v.dead, v.reason = true, reason
	v.w.take("VM", -1)
	close(v.done)
}

func (v *fakeVM) set(ctx context.Context, point string, running bool) error {
	if err := v.w.at(ctx, point); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dead {
		return vmm.ErrGone
	}
	v.running = running
	return nil
}

func (v *fakeVM) Handle() vmm.Handle {
	return vmm.Handle{Driver: "fake", PID: os.Getpid(), StartTime: 7}
}
func (v *fakeVM) CPU() vmm.CPU                   { return v.cpu }
func (v *fakeVM) Stop(ctx context.Context) error { return v.set(ctx, "stop", false) }
func (v *fakeVM) Cont(ctx context.Context) error { return v.set(ctx, "cont", true) }
func (v *fakeVM) SaveState(ctx context.Context, _ string) error {
	return v.w.at(ctx, "save state")
}

func (v *fakeVM) SaveDirty(ctx context.Context, w vmm.DirtyWriter) (int64, error) {
	return 4096, errors.Join(v.w.at(ctx, "save dirty"), w.WriteDirty(make([]byte, 4096), 0))
}
func (v *fakeVM) PrivateBytes() (int64, error) { return 0, nil }
func (v *fakeVM) Kill(context.Context) error   { v.die("killed on purpose"); return nil }
func (v *fakeVM) Done() <-chan struct{}        { return v.done }

func (v *fakeVM) Exit() vmm.Exit {
	v.mu.Lock()
	defer v.mu.Unlock()
	return vmm.Exit{Reason: v.reason}
}

func (w *world) vm(id string) *fakeVM {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vms[id]
}

func (v *fakeVM) isRunning() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.running && !v.dead
}
