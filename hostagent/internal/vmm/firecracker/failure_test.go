package firecracker_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api/apispec"
)

// fakeDisks attaches nothing, and counts.
type fakeDisks struct {
	path string

	mu       sync.Mutex // guards what follows
	attached int
	flushed  int
}

func (d *fakeDisks) Attach(context.Context, firecracker.Attachment) (firecracker.Disk, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attached++
	return &fakeDisk{disks: d}, nil
}

func (d *fakeDisks) Reattach(context.Context, firecracker.Attachment) (firecracker.Disk, error) {
	return &fakeDisk{disks: d}, nil
}

func (d *fakeDisks) left() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attached
}

type fakeDisk struct {
	disks *fakeDisks
	once  sync.Once
}

func (d *fakeDisk) Path() string { return d.disks.path }
func (d *fakeDisk) Close() error { return nil }

func (d *fakeDisk) Flush(context.Context) error {
	d.disks.mu.Lock()
	defer d.disks.mu.Unlock()
	d.disks.flushed++
	return nil
}

func (d *fakeDisk) Detach(context.Context) error {
	d.once.Do(func() {
		d.disks.mu.Lock()
		defer d.disks.mu.Unlock()
		d.disks.attached--
	})
	return nil
}

// stage has a driver whose Firecracker is scripted.
type stage struct {
	t      *testing.T
	driver *firecracker.Driver
	disks  *fakeDisks
	dir    string
}

func newStage(t *testing.T, change func(*firecracker.Config)) *stage {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("VMs run as users of their own: run this test as root")
	}
	// The executable as it is named has to be reachable in the cage, by a user of no privileges.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{t: t, dir: t.TempDir()}
	s.disks = &fakeDisks{path: filepath.Join(s.dir, "disk")}
	for _, name := range []string{"disk", "kernel", "initrd"} {
		if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	conf := firecracker.Config{Binary: self, NoJailer: true, Disks: s.disks, Timeout: 10 * time.Second, HangTime: 30 * time.Second, Balloon: true, Trace: checked(t)}
	if change != nil {
		change(&conf)
	}
	if s.driver, err = firecracker.New(conf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.driver.Close()
		if n := s.disks.left(); n != 0 {
			t.Errorf("%d disks are still attached", n)
		}
	})
	return s
}

// brief has little patience, for what never answers.
func brief(c *firecracker.Config) { c.Timeout, c.HangTime = time.Second, 3*time.Second }

// checked checks each exchange against Firecracker's description.
func checked(t *testing.T) func(api.Exchange) {
	spec := apispec.LoadIfThere(t)
	if spec == nil {
		return nil
	}
	return func(x api.Exchange) {
		if err := spec.CheckRequest(x.Method, x.Path, x.Request); err != nil {
			t.Errorf("request: %v", err)
		}
		if err := spec.CheckAnswer(x.Method, x.Path, x.Status, x.Answer); err != nil && !misbehaves(t) {
			t.Errorf("answer: %v", err)
		}
	}
}

// misbehaves tells whether the answers of this test are wrong on purpose.
func misbehaves(t *testing.T) bool { return strings.HasPrefix(t.Name(), "TestGarbage") }

func (s *stage) config(script string) vmm.Config {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.dir, "run")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		s.t.Fatal(err)
	}
	return vmm.Config{
		ID: script + "_1", RunDir: dir, VCPUs: 1, MemoryBytes: 64 << 20, Kernel: filepath.Join(s.dir, "kernel"),
		Initrd: filepath.Join(s.dir, "initrd"), DiskSocket: filepath.Join(dir, "disk.sock"), TapName: "tap0", MAC: "06:00:AC:10:00:02",
		NetNS: newNetNS(s.t, "tap0"), ConsolePath: filepath.Join(dir, "console.log"), UID: 260000, GID: 260000,
	}
}

func (s *stage) boot(script string) vmm.VM {
	s.t.Helper()
	vm, err := s.driver.Boot(s.t.Context(), s.config(script))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { vm.Kill(context.Background()) })
	return vm
}

// ended waits for a VM's end, by itself.
func ended(t *testing.T, vm vmm.VM) vmm.Exit {
	t.Helper()
	select {
	case <-vm.Done():
	case <-time.After(patience):
		t.Fatal("the VM has not ended")
	}
	if err := unix.Kill(vm.Handle().PID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the process is still there: %v", err)
	}
	isGone(t, vm)
	return vm.Exit()
}

func TestKilledIsGoneWithItsSignal(t *testing.T) {
	s := newStage(t, nil)
	vm := s.boot("ok")
	if err := unix.Kill(vm.Handle().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := ended(t, vm); e.Signal != 9 || e.Code != -1 || !strings.Contains(e.Reason, "killed by signal 9 (SIGKILL)") {
		t.Errorf("its end is %+v", e)
	}
}

func TestHungIsUnresponsiveAndThenEnded(t *testing.T) {
	s := newStage(t, brief)
	vm := s.boot("hang")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := vm.Stop(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, vmm.ErrUnresponsive) {
		t.Errorf("Stop that the caller gave up: %v", err)
	}
	if err := vm.Stop(t.Context()); !errors.Is(err, vmm.ErrUnresponsive) {
		t.Errorf("Stop: %v", err)
	}
	if e := ended(t, vm); !strings.Contains(e.Reason, "has not answered on its control socket for") {
		t.Errorf("its end is %+v", e)
	}
}

func TestStoppedBySignalGoesOnWhereItAnswersInTime(t *testing.T) {
	s := newStage(t, func(c *firecracker.Config) { c.HangTime = time.Minute })
	vm := s.boot("ok")
	pid := vm.Handle().PID
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for range 3 {
		if err := vm.Stop(ctx); !errors.Is(err, vmm.ErrUnresponsive) {
			t.Errorf("Stop: %v", err)
		}
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// Late answers are not taken for others', and late requests do not overtake later ones.
	if err := vm.Cont(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := vm.SaveState(t.Context(), filepath.Join(s.dir, "never")); !errors.Is(err, vmm.ErrNotStopped) {
		t.Errorf("saving a VM that goes on: %v", err)
	}
}

func TestGarbageIsUnresponsiveAndThenEnded(t *testing.T) {
	for script, why := range map[string]string{
		"garbage": "not Firecracker's API", "endless": "not Firecracker's API", "leave": "connection has ended",
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, nil)
			vm := s.boot(script)
			if err := vm.Stop(t.Context()); !errors.Is(err, vmm.ErrUnresponsive) {
				t.Errorf("Stop: %v", err)
			}
			if e := ended(t, vm); !strings.Contains(e.Reason, why) || !strings.Contains(e.Reason, "so it was killed") {
				t.Errorf("its end is %+v", e)
			}
		})
	}
	for script, do := range map[string]func(vmm.VM) error{
		"nofault": func(vm vmm.VM) error { return vm.Stop(t.Context()) },
		"chatter": func(vm vmm.VM) error { return vm.SaveState(t.Context(), "/never") },
	} {
		t.Run(script, func(t *testing.T) {
			s := newStage(t, nil)
			if err := do(s.boot(script)); !errors.Is(err, vmm.ErrUnresponsive) {
				t.Errorf("it says %v", err)
			}
		})
	}
}

func TestOutOfMemoryIsToldFromOtherKills(t *testing.T) {
	procs := smallCgroup(t, 48<<20)
	s := newStage(t, func(c *firecracker.Config) { c.Timeout, c.HangTime = 20*time.Second, time.Minute })
	cfg := s.config("hungry")
	cfg.CgroupProcs = []string{procs}
	vm, err := s.driver.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Stop(t.Context()); !errors.Is(err, vmm.ErrGone) || !strings.Contains(err.Error(), "out of memory") {
		t.Errorf("Stop: %v", err)
	}
	if e := ended(t, vm); e.Signal != 9 || !strings.Contains(e.Reason, "out of memory, by the limit of its cgroup") {
		t.Errorf("its end is %+v", e)
	}
}

// smallCgroup makes a cgroup of so much memory, and returns the file by which processes enter it.
func smallCgroup(t *testing.T, limit int64) string {
	t.Helper()
	for _, c := range []struct{ root, limit, procs string }{
		{"/sys/fs/cgroup", "memory.max", "cgroup.procs"}, {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "tasks"},
	} {
		dir := filepath.Join(c.root, fmt.Sprint("covey-firecracker-test-", os.Getpid()))
		var fs unix.Statfs_t
		if unix.Statfs(c.root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC && fs.Type != unix.CGROUP_SUPER_MAGIC || os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { os.Remove(dir) })
		if os.WriteFile(filepath.Join(dir, c.limit), fmt.Append(nil, limit), 0) == nil {
			os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0) // where there is one
			return filepath.Join(dir, c.procs)
		}
	}
	t.Skip("no cgroup can be given a limit of memory here (a container without delegation?)")
	return ""
}

func TestAForbiddenSystemCallIsNamed(t *testing.T) {
	s := newStage(t, nil)
	vm := s.boot("seccomp")
	if err := vm.Stop(t.Context()); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("Stop: %v", err)
	}
	if e := ended(t, vm); e.Code != 148 || !strings.Contains(e.Reason, "seccomp filter forbids") {
		t.Errorf("its end is %+v", e)
	}
}

func TestAFailedStartLeavesNothing(t *testing.T) {
	for name, x := range map[string]struct {
		script, want string
		is           error
		change       func(*vmm.Config)
	}{
		"mute":         {script: "mute", is: vmm.ErrUnresponsive},
		"exit":         {script: "exit", is: vmm.ErrGone, want: "I do not want to"},
		"refuse":       {script: "refuse", want: "no guest today"},
		"no kernel":    {script: "ok", change: func(c *vmm.Config) { c.Kernel = "/nowhere" }},
		"no namespace": {script: "ok", change: func(c *vmm.Config) { c.NetNS = "/nowhere" }},
		"no vCPUs":     {script: "ok", change: func(c *vmm.Config) { c.VCPUs = 0 }, want: "VCPUs: must be 1 to 32, got 0"},
		"odd memory":   {script: "ok", change: func(c *vmm.Config) { c.MemoryBytes++ }, want: "MemoryBytes"},
		"two disks":    {script: "ok", change: func(c *vmm.Config) { c.DiskPath = "/x" }, want: "only one of them"},
		"no MAC":       {script: "ok", change: func(c *vmm.Config) { c.MAC = "" }, want: "go together"},
		"no pager":     {script: "ok", change: func(c *vmm.Config) { c.PagerSocket = "/nowhere" }, want: "PagerSocket"},
		"no run dir":   {script: "ok", change: func(c *vmm.Config) { c.RunDir = "x" }, want: "RunDir"},
	} {
		t.Run(name, func(t *testing.T) {
			var change func(*firecracker.Config)
			if x.script == "mute" {
				change = brief
			}
			s := newStage(t, change)
			cfg := s.config(x.script)
			if x.change != nil {
				x.change(&cfg)
			}
			vm, err := s.driver.Boot(t.Context(), cfg)
			if err == nil {
				vm.Kill(context.Background())
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), x.want) || x.is != nil && !errors.Is(err, x.is) {
				t.Errorf("it says %v, want %q (%v)", err, x.want, x.is)
			}
		})
	}
}

func TestWhatTheVMMSavedIsNotTrusted(t *testing.T) {
	for _, script := range []string{"short", "link"} {
		s := newStage(t, nil)
		vm := s.boot(script)
		if err := vm.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		stateErr := vm.SaveState(t.Context(), filepath.Join(s.dir, "state"))
		_, dirtyErr := vm.SaveDirty(t.Context(), newMemory("m", nil))
		if stateErr == nil && dirtyErr == nil {
			t.Errorf("%s: it is taken", script)
		}
	}
}

func TestStateAndMemoryAreOfOneRequest(t *testing.T) {
	var mu sync.Mutex
	creates := 0
	check := checked(t)
	s := newStage(t, func(c *firecracker.Config) {
		c.Trace = func(x api.Exchange) {
			if check != nil {
				check(x)
			}
			mu.Lock()
			defer mu.Unlock()
			if x.Path == "/snapshot/create" {
				creates++
			}
		}
	})
	vm := s.boot("ok")
	state := filepath.Join(s.dir, "state")
	for round := 1; round <= 2; round++ {
		if err := vm.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := vm.SaveState(t.Context(), state); err != nil {
			t.Fatal(err)
		}
		m := newMemory("m", nil)
		n, err := vm.SaveDirty(t.Context(), m)
		if err != nil || n != 2*4096 || !m.dirty[4096] || !m.dirty[1<<20] {
			t.Errorf("%d bytes are dirty (%v): %v", n, err, m.dirty)
		}
		mu.Lock()
		if creates != round || s.disks.flushed != round {
			t.Errorf("%d requests and %d flushes for %d snapshots", creates, s.disks.flushed, round)
		}
		mu.Unlock()
		if err := vm.Cont(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	cfg := s.config("ok")
	cfg.PagerSocket = filepath.Join(cfg.RunDir, "pager.sock")
	pager, err := net.Listen("unix", cfg.PagerSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer pager.Close()
	restored, err := s.driver.Restore(t.Context(), cfg, state)
	if err != nil {
		t.Fatal(err)
	}
	if err := restored.Kill(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAGuestCannotFloodTheHostsDisk(t *testing.T) {
	s := newStage(t, nil)
	cfg := s.config("flood")
	const most = 16 << 20
	if err := os.WriteFile(cfg.ConsolePath, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(cfg.ConsolePath, most-100); err != nil {
		t.Fatal(err)
	}
	vm, err := s.driver.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill(context.Background())
	if st, err := os.Stat(cfg.ConsolePath); err != nil || st.Size() > most {
		t.Errorf("the console has %d bytes (%v)", st.Size(), err)
	}
}
