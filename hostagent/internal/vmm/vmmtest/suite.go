package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// Setup says what is to be tested.
type Setup struct {
	// Driver makes the driver, and sees to its closing by t.Cleanup. Its timeout for an answer should be some seconds: one test waits for it, and an overrun machine takes some.
	Driver func(t *testing.T) vmm.Driver
	// Kernel is the artifact that it boots: "bzImage" or "vmlinux".
	Kernel string
	// Cmdline is added to the kernel's parameters.
	Cmdline string
}

// Run runs the suite.
func Run(t *testing.T, setup Setup) {
	l := newLab(t, setup)
	booted := l.boot(t, nil)
	t.Run("BootRunsTheGuest", func(t *testing.T) { testBoot(t, booted) })
	t.Run("StopStandsStillAndContGoesOn", func(t *testing.T) { testPause(t, booted) })
	t.Run("SavingARunningVMIsRefused", func(t *testing.T) { testNotStopped(t, booted) })
	booted.ask("fill 1 8")
	booted.ask("write 4096 65536 1")
	base := booted.save()
	t.Run("AVMGoesOnAfterItWasSaved", func(t *testing.T) { testGoesOn(t, booted) })
	for name, test := range map[string]func(*testing.T, *lab, *snapshot){
		"RestoreGivesBackMemoryAndDisk":       testRestore,
		"ASecondGenerationIsSmall":            testDiff,
		"ClonesAreIsolated":                   testClones,
		"KilledByHandIsSeenWithItsSignal":     testKilled,
		"KillEndsAndMayBeRepeated":            testKill,
		"AHungVMMIsUnresponsive":              testHang,
		"GuestsEndsAreTold":                   testEnds,
		"UnfitStatesAreRefused":               testUnfit,
		"AnotherAgentTakesOver":               testReopen,
		"ASaveThatIsGivenUpDoesNotHoldTheVM":  testGivenUp,
		"OperationsAtOnceWaitForEachOther":    testConcurrent,
		"AGuestCannotFloodTheHostsDisk":       testFlood,
		"AFailedStartLeavesNothing":           testFailedStart,
		"TheCallersContextDoesNotBoundTheVM":  testContext,
		"PrivateMemoryGrowsWithWhatIsWritten": testPrivate,
	} {
		t.Run(name, func(t *testing.T) { test(t, l, base) })
	}
	t.Run("SeveralCPUs", func(t *testing.T) { testSMP(t, l) })
	t.Run("ABaselineIsWhatTheGuestSeesAndItsSnapshotsKeep", func(t *testing.T) { testBaseline(t, l, base) })
}

func testBoot(t *testing.T, s *subject) {
	if n := s.ask("cpus"); n != "1" {
		t.Errorf("the guest has %s CPUs, want 1", n)
	}
	s.ask("say hello from the guest")
	s.awaitConsole("hello from the guest")
	if e := s.Exit(); e != (vmm.Exit{}) {
		t.Errorf("while it runs Exit says %+v", e)
	}
	if h := s.Handle(); h.PID == 0 || h.StartTime == 0 || h.Control == "" || h.Driver != s.lab.driver.Capabilities().Driver {
		t.Errorf("its handle is %+v", h)
	}
}

func testPause(t *testing.T, s *subject) {
	before := s.ticks()
	s.stop()
	s.stop()
	if _, err := s.try(300*time.Millisecond, "ping"); err == nil {
		t.Error("a stopped guest answers")
	}
	s.cont()
	s.cont()
	if after := s.ticks(); after < before {
		t.Errorf("%d ticks, before the pause %d", after, before)
	}
}

func testNotStopped(t *testing.T, s *subject) {
	if err := s.SaveState(t.Context(), s.lab.dir+"/never"); !errors.Is(err, vmm.ErrNotStopped) {
		t.Errorf("SaveState: %v", err)
	}
	if _, err := s.SaveDirty(t.Context(), newContent(t, memoryBytes)); !errors.Is(err, vmm.ErrNotStopped) {
		t.Errorf("SaveDirty: %v", err)
	}
	s.ticks()
}

func testGoesOn(t *testing.T, s *subject) {
	s.cont()
	sum := s.ask("sum")
	s.ask("touch 7 100")
	if s.ask("sum") == sum {
		t.Error("writing changed nothing")
	}
	s.ask("write 0 4096 9")
	if err := s.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func testRestore(t *testing.T, l *lab, base *snapshot) {
	s := l.restore(t, base)
	if _, err := s.try(300*time.Millisecond, "ping"); err == nil {
		t.Error("a restored guest runs before Cont")
	}
	s.cont()
	s.ticks()
	begin := time.Now()
	quick := l.restore(t, base)
	loaded := time.Since(begin)
	quick.cont()
	quick.ticks()
	t.Logf("restored in %v, answered after %v", loaded.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	// The same again, by a guest that has been told nothing but its seed.
	other := l.clone(t, base)
	other.ask("fill 1 8")
	if got, want := s.ask("sum"), other.ask("sum"); got != want {
		t.Errorf("memory has the sum %s, want %s", got, want)
	}
	other.ask("write 4096 65536 1")
	if got, want := s.ask("read 4096 65536"), other.ask("read 4096 65536"); got != want {
		t.Errorf("the disk has the sum %s, want %s", got, want)
	}
	if st, err := os.Stat(base.state); err != nil || st.Size() > 1<<20 {
		t.Errorf("the state has %d bytes, want less than 1 MiB (%v)", st.Size(), err)
	}
}

func testDiff(t *testing.T, l *lab, base *snapshot) {
	one := l.clone(t, base)
	one.ask("touch 5 64")
	sum := one.ask("sum")
	second := one.save()
	t.Logf("first generation %d KiB, second %d KiB", base.dirty>>10, second.dirty>>10)
	if second.dirty > base.dirty/2 || second.dirty < 64*4096 {
		t.Errorf("the second generation has %d bytes, the first %d; 64 pages were written", second.dirty, base.dirty)
	}
	two := l.clone(t, second)
	if got := two.ask("sum"); got != sum {
		t.Errorf("memory has the sum %s, want %s", got, sum)
	}
	// While it stands still it can be saved again.
	again := *second
	again.state += "again"
	if err := one.SaveState(t.Context(), again.state); err != nil {
		t.Fatal(err)
	}
	l.clone(t, &again).ticks()
}

func testClones(t *testing.T, l *lab, base *snapshot) {
	one, two := l.clone(t, base), l.clone(t, base)
	before := one.ask("sum")
	one.ask("touch 11 32")
	one.ask("write 4096 4096 11")
	two.ask("touch 12 32")
	two.ask("write 4096 4096 12")
	fresh := l.clone(t, base)
	if got := fresh.ask("sum"); got != before {
		t.Errorf("a third clone has the sum %s, want %s", got, before)
	}
	if one.ask("sum") == two.ask("sum") || one.ask("sum") == before {
		t.Error("clones see each other's memory, or not their own")
	}
	if a, b, c := one.ask("read 4096 4096"), two.ask("read 4096 4096"), fresh.ask("read 4096 4096"); a == b || a == c || b == c {
		t.Errorf("clones see each other's disks: %s %s %s", a, b, c)
	}
}

// ended waits for a VM's end.
func (s *subject) ended() vmm.Exit {
	s.t.Helper()
	select {
	case <-s.Done():
	case <-time.After(patience):
		s.t.Fatalf("the VM has not ended\n%s", s.console())
	}
	return s.Exit()
}

func testKilled(t *testing.T, l *lab, base *snapshot) {
	s := l.clone(t, base)
	if err := unix.Kill(s.Handle().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := s.ended(); e.Signal != 9 || e.Code != -1 || e.Time.IsZero() || !strings.Contains(e.Reason, "killed by signal 9 (SIGKILL)") {
		t.Errorf("its end is %+v", e)
	}
	isGone(t, s)
}

// isGone checks that every method says so.
func isGone(t *testing.T, s *subject) {
	t.Helper()
	_, dirtyErr := s.SaveDirty(t.Context(), newContent(t, memoryBytes))
	_, privateErr := s.PrivateBytes()
	for name, err := range map[string]error{
		"Stop": s.Stop(t.Context()), "Cont": s.Cont(t.Context()), "SaveState": s.SaveState(t.Context(), s.lab.dir+"/never"),
		"SaveDirty": dirtyErr, "PrivateBytes": privateErr,
	} {
		if !errors.Is(err, vmm.ErrGone) {
			t.Errorf("%s of a VM that is gone: %v", name, err)
		}
	}
	if _, err := s.lab.driver.Reopen(t.Context(), s.cfg, s.Handle()); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("Reopen of a VM that is gone: %v", err)
	}
}

func testKill(t *testing.T, l *lab, base *snapshot) {
	s := l.restore(t, base)
	for range 2 {
		if err := s.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(s.Handle().PID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the process is still there: %v", err)
	}
	s.ended()
}

func testHang(t *testing.T, l *lab, base *snapshot) {
	s := l.clone(t, base)
	if err := unix.Kill(s.Handle().PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Told by the caller's deadline as well as by the driver's own.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Stop(ctx); !errors.Is(err, vmm.ErrUnresponsive) {
		t.Errorf("Stop with a deadline: %v", err)
	}
	if err := s.Stop(t.Context()); !errors.Is(err, vmm.ErrUnresponsive) {
		t.Errorf("Stop without a deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if err := s.Stop(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, vmm.ErrUnresponsive) {
		t.Errorf("Stop that the caller gave up: %v", err)
	}
	if err := unix.Kill(s.Handle().PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// Late answers are not taken for others'.
	s.stop()
	s.cont()
	s.ticks()
	if err := unix.Kill(s.Handle().PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(t.Context()); err != nil {
		t.Errorf("Kill of a hung VMM: %v", err)
	}
}

func testEnds(t *testing.T, l *lab, base *snapshot) {
	for request, want := range map[string]string{"poweroff": "the guest powered off", "reboot": "rebooted", "panic": "panicked: \"sysrq triggered crash\""} {
		t.Run(request, func(t *testing.T) {
			s := l.clone(t, base)
			s.tell(request)
			if e := s.ended(); e.Code != 0 || e.Signal != 0 || !strings.Contains(e.Reason, want) {
				t.Errorf("its end is %+v, want %q", e, want)
			}
			isGone(t, s)
		})
	}
}

func testUnfit(t *testing.T, l *lab, base *snapshot) {
	state, err := os.ReadFile(base.state)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte{}, state...)
	flipped[len(flipped)/2] ^= 1
	for name, b := range map[string][]byte{
		"empty": {}, "text": []byte("this is no state"), "half": state[:len(state)/2], "short": state[:len(state)-1],
		"long": append(append([]byte{}, state...), 0), "flipped": flipped, "zeros": make([]byte, len(state)),
	} {
		refuse(t, l, base, name, b, nil)
	}
	refuse(t, l, base, "other memory", state, func(c *vmm.Config) { c.MemoryBytes *= 2 })
	refuse(t, l, base, "other vCPUs", state, func(c *vmm.Config) { c.VCPUs = 2 })
	refuse(t, l, base, "no network", state, func(c *vmm.Config) { c.TapName, c.MAC = "", "" })
}

// refuse restores a state that cannot be.
func refuse(t *testing.T, l *lab, base *snapshot, name string, state []byte, change func(*vmm.Config)) {
	t.Helper()
	s := l.place(t, base)
	if change != nil {
		change(&s.cfg)
	}
	path := fmt.Sprintf("%s/unfit", s.cfg.RunDir)
	if err := os.WriteFile(path, state, 0o600); err != nil {
		t.Fatal(err)
	}
	vm, err := l.driver.Restore(t.Context(), s.cfg, path)
	if err == nil {
		vm.Kill(context.Background())
	}
	if !errors.Is(err, vmm.ErrIncompatible) {
		t.Errorf("%s: %v", name, err)
	}
}

// testGivenUp has what the death of an agent amid a save leaves: a VMM that saves for nobody.
func testGivenUp(t *testing.T, l *lab, base *snapshot) {
	s := l.clone(t, base)
	for _, gaveUp := range []time.Duration{0, time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond, 16 * time.Millisecond} {
		s.stop()
		ctx, cancel := context.WithTimeout(t.Context(), gaveUp)
		err := s.SaveState(ctx, filepath.Join(t.TempDir(), "state"))
		cancel()
		s.cont()
		before := s.ticks()
		eventually(t, fmt.Sprintf("after a save that was given up after %s (%v) the guest goes on", gaveUp, err), patience, func() bool { return s.ticks() > before })
	}
	sum := s.ask("sum")
	if got := l.clone(t, s.save()).ask("sum"); got != sum {
		t.Errorf("memory saved afterwards has the sum %s, want %s", got, sum)
	}
}

func testConcurrent(t *testing.T, l *lab, base *snapshot) {
	s := l.clone(t, base)
	errs := make(chan error)
	const rounds = 10
	for _, f := range []func() error{
		func() error { return s.Stop(t.Context()) },
		func() error { return s.Cont(t.Context()) },
		func() error { _, err := s.PrivateBytes(); return err },
		func() error {
			if err := s.SaveState(t.Context(), s.lab.dir+"/concurrent"); !errors.Is(err, vmm.ErrNotStopped) {
				return err
			}
			return nil
		},
	} {
		go func() {
			var err error
			for range rounds {
				err = errors.Join(err, f())
			}
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	s.cont()
	s.ticks()
}

func testFlood(t *testing.T, l *lab, base *snapshot) {
	s := l.clone(t, base)
	const most = 16 << 20
	// As if it had printed so much already.
	if err := os.Truncate(s.cfg.ConsolePath, most-100); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		s.ask("say %s", strings.Repeat("x", 100))
	}
	s.ticks()
	if st, err := os.Stat(s.cfg.ConsolePath); err != nil || st.Size() > most {
		t.Errorf("the console has %d bytes (%v)", st.Size(), err)
	}
	// Whoever empties it lets the guest go on.
	if err := os.Truncate(s.cfg.ConsolePath, 0); err != nil {
		t.Fatal(err)
	}
	s.ask("say once more")
	s.awaitConsole("once more")
}

func testFailedStart(t *testing.T, l *lab, base *snapshot) {
	for name, change := range map[string]func(*vmm.Config){
		"no kernel":     func(c *vmm.Config) { c.Kernel = "/nowhere" },
		"no kernel ELF": func(c *vmm.Config) { c.Kernel = "/etc/os-release" },
		"no network":    func(c *vmm.Config) { c.NetNS = "/nowhere" },
		"no TAP device": func(c *vmm.Config) { c.TapName = "tap9"; c.NetNS = "/proc/1/nowhere" },
		"no disk":       func(c *vmm.Config) { c.DiskSocket = c.RunDir + "/nowhere" },
		"no pager":      func(c *vmm.Config) { c.PagerSocket = c.RunDir + "/nowhere" },
		"no vCPUs":      func(c *vmm.Config) { c.VCPUs = 0 },
		"1000 vCPUs":    func(c *vmm.Config) { c.VCPUs = 1000 },
		"odd memory":    func(c *vmm.Config) { c.MemoryBytes++ },
	} {
		s := l.place(t, nil)
		change(&s.cfg)
		vm, err := l.driver.Boot(t.Context(), s.cfg)
		if err == nil {
			t.Errorf("%s: it started", name)
			vm.Kill(context.Background())
			continue
		}
		t.Logf("%s: %v", name, err)
	}
}

func testContext(t *testing.T, l *lab, base *snapshot) {
	ctx, cancel := context.WithCancel(t.Context())
	s := l.place(t, base)
	vm, err := l.driver.Restore(ctx, s.cfg, base.state)
	if err != nil {
		t.Fatal(err)
	}
	s.own(vm)
	cancel()
	s.cont()
	s.ticks()
}

func testPrivate(t *testing.T, l *lab, base *snapshot) {
	s := l.clone(t, base)
	s.ticks()
	before, err := s.PrivateBytes()
	if err != nil {
		t.Fatal(err)
	}
	const pages = 1024
	s.ask("touch 3 %d", pages)
	after, err := s.PrivateBytes()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB private, after writing %d KiB %d KiB", before>>10, pages*4, after>>10)
	if after-before < pages*4096 || after > memoryBytes+memoryBytes/2 {
		t.Errorf("private memory went from %d to %d bytes while %d were written", before, after, pages*4096)
	}
}

func testSMP(t *testing.T, l *lab) {
	s := l.boot(t, func(c *vmm.Config) { c.VCPUs = 2 })
	if n := s.ask("cpus"); n != "2" {
		t.Errorf("the guest has %s CPUs, want 2", n)
	}
	s.ask("fill 1 4")
	sum := s.ask("sum")
	snap := s.save()
	if err := s.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	clone := l.clone(t, snap)
	if got := clone.ask("sum"); got != sum || clone.ask("cpus") != "2" {
		t.Errorf("restored with %s CPUs and the sum %s, want %s", clone.ask("cpus"), got, sum)
	}
}

// testBaseline takes a feature away that no guest needs.
func testBaseline(t *testing.T, l *lab, base *snapshot) {
	const feature = "popcnt"
	caps := l.driver.Capabilities()
	if !slices.Contains(caps.CPUFeatures, feature) || !slices.Contains(caps.Machines, caps.Machine) {
		t.Fatalf("the driver's capabilities are %+v", caps)
	}
	baseline := slices.DeleteFunc(slices.Clone(caps.CPUFeatures), func(f string) bool { return f == feature })
	s := l.boot(t, func(c *vmm.Config) { c.Baseline = baseline })
	cpu := s.CPU()
	if !slices.Equal(cpu.Features, baseline) || !slices.Contains(cpu.Masked, feature) || !reflect.DeepEqual(cpu, l.driver.CPU(baseline)) {
		t.Errorf("its processor is %+v, announced was %+v", cpu, l.driver.CPU(baseline))
	}
	snap := s.save()
	if err := s.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	clone := l.clone(t, snap)
	if !reflect.DeepEqual(clone.CPU(), cpu) {
		t.Errorf("restored its processor is %+v, was %+v", clone.CPU(), cpu)
	}
	for _, x := range []struct {
		who  string
		s    *subject
		sees bool
	}{{"a guest with the baseline", clone, false}, {"one that was saved before there was one", l.clone(t, base), true}} {
		if flags := strings.Fields(x.s.ask("flags")); slices.Contains(flags, feature) != x.sees || !slices.Contains(flags, "sse2") {
			t.Errorf("%s sees %v", x.who, flags)
		}
	}
}
