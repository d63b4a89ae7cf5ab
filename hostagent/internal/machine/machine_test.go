package machine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func spec(id string) Spec {
	return Spec{ID: id, Image: "tiny", VCPUs: 1, MemoryMB: 128, DiskMB: 64, ColdBoot: true}
}

func start(t *testing.T, h *Host, s Spec) *Machine {
	t.Helper()
	if _, err := h.Start(t.Context(), s, "rst_"+s.ID); err != nil {
		t.Fatal(err)
	}
	m, err := h.Find(s.ID)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// waitState waits for a change to a state.
func waitState(t *testing.T, sub *Subscription, id string, s State) Status {
	t.Helper()
	for {
		select {
		case e := <-sub.Events():
			if e.Status.Spec.ID == id && e.Status.State == s {
				return e.Status
			}
		case <-time.After(3 * time.Minute):
			t.Fatalf("sandbox %s never became %s", id, s)
		}
	}
}

func TestAFailureAtAnyStepLeavesNothing(t *testing.T) {
	for _, point := range []string{"slot", "cage", "disk", "zeros", "boot", "after restore"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld()
			h := w.newHost(t)
			w.failAt(point, errors.New("as told"))
			if _, err := h.Start(t.Context(), spec("sb_1"), "rst_1"); err == nil || !strings.Contains(err.Error(), "as told") {
				t.Fatalf("start answered %v", err)
			}
			if left := w.holdings(); left != "" {
				t.Errorf("left behind: %s", left)
			}
			if entries, err := h.journal.Load(); err != nil || len(entries) != 0 {
				t.Errorf("journal has %v, %v", entries, err)
			}
			if _, err := h.Find("sb_1"); !errors.As(err, new(*NotHereError)) {
				t.Errorf("the table has it: %v", err)
			}
			w.failAt(point, nil)
			start(t, h, spec("sb_1"))
		})
	}
}

func TestAStartGoesOnWhenItsCallerGoesAway(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	reached, open := w.block("boot")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := h.Start(ctx, spec("sb_1"), "rst_1"); !errors.Is(err, context.Canceled) {
			t.Errorf("the first caller got %v", err)
		}
	})
	<-reached
	cancel()
	wg.Wait()
	open()
	got, err := h.Start(t.Context(), spec("sb_1"), "rst_1")
	if err != nil || got.Status.State != Running || w.count("boot") != 1 {
		t.Fatalf("the second caller got %v, %v after %d boots", got.Status.State, err, w.count("boot"))
	}
	if again, err := h.Start(t.Context(), spec("sb_1"), "rst_1"); err != nil || again.Receipt.Total != got.Receipt.Total {
		t.Errorf("asked again: %v, %v", again, err)
	}
}

func TestPhasesSumToTheTotal(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	r := start(t, h, spec("sb_1")).Receipt()
	var sum time.Duration
	for _, p := range r.Phases {
		sum += p.Duration
	}
	if sum != r.Total || len(r.Phases) < 8 {
		t.Errorf("phases %v sum to %s, not %s", r.Phases, sum, r.Total)
	}
}

func TestADeadVMIsFailedWithItsReasonAndFreed(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	sub := h.Watch(64)
	defer sub.Close()
	start(t, h, spec("sb_1"))
	w.vm("sb_1").die("the VMM was killed by signal 9 (SIGKILL)")
	st := waitState(t, sub, "sb_1", Failed)
	if st.Reason != "the VMM was killed by signal 9 (SIGKILL)" {
		t.Errorf("reason %q", st.Reason)
	}
	if left := w.holdings(); left != "" || h.ledger.Used() != (Room{}) {
		t.Errorf("left behind: %s; %s", left, h.ledger.Used())
	}
	start(t, h, spec("sb_1"))
}

// world after an operation that was blocked half-way and the sandbox destroyed meanwhile.
func TestDestroyEndsWhatIsUnderWay(t *testing.T) {
	for _, c := range []struct {
		point string
		op    func(*Host, *Machine) error
	}{
		{"boot", func(h *Host, _ *Machine) error {
			_, err := h.Start(context.Background(), spec("sb_2"), "rst_2")
			return err
		}},
		{"save dirty", func(_ *Host, m *Machine) error {
			_, _, err := m.Pause(context.Background(), "snap_1")
			return err
		}},
		{"commit", func(_ *Host, m *Machine) error {
			_, err := m.Snapshot(context.Background(), SnapshotRequest{ID: "snap_1", Kind: TemplateSnapshot})
			return err
		}},
		{"restore", func(_ *Host, m *Machine) error {
			_, _, err := m.Fork(context.Background(), "snap_1", []string{"sb_3", "sb_4"})
			return err
		}},
	} {
		t.Run(c.point, func(t *testing.T) {
			w := newWorld()
			h := w.newHost(t)
			m := start(t, h, spec("sb_1"))
			reached, open := w.block(c.point)
			defer open()
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := c.op(h, m); !errors.Is(err, ErrDestroyed) {
					t.Errorf("the operation answered %v", err)
				}
			})
			<-reached
			for _, m := range h.all() {
				if err := m.Destroy(t.Context(), ""); err != nil {
					t.Error(err)
				}
			}
			wg.Wait()
			if left := w.holdings(); left != "" || len(h.List()) != 0 {
				t.Errorf("left behind: %s; %v", left, h.List())
			}
		})
	}
}

func TestAFailedPauseLeavesTheSandboxRunning(t *testing.T) {
	for _, point := range []string{"draft", "stop", "save state", "save dirty", "take disk", "commit"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld()
			h := w.newHost(t)
			m := start(t, h, spec("sb_1"))
			w.failAt(point, errors.New("disk full"))
			if _, _, err := m.Pause(t.Context(), "snap_1"); err == nil || !strings.Contains(err.Error(), "disk full") {
				t.Fatalf("pause answered %v", err)
			}
			if m.Status().State != Running || !w.vm("sb_1").isRunning() {
				t.Errorf("state %s, VM running: %t", m.Status().State, w.vm("sb_1").isRunning())
			}
			w.failAt(point, nil)
			if st, _, err := m.Pause(t.Context(), "snap_1"); err != nil || st.State != Paused {
				t.Errorf("then: %v, %v", st.State, err)
			}
		})
	}
}

func TestPauseAndResume(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	m := start(t, h, spec("sb_1"))
	for range 2 { // the second answers as the first
		st, _, err := m.Pause(t.Context(), "snap_1")
		if err != nil || st.State != Paused || st.SnapshotID != "snap_1" || st.AutoPaused {
			t.Fatalf("pause: %+v, %v", st, err)
		}
	}
	if left := w.holdings(); left != "" {
		t.Errorf("a paused sandbox holds %s", left)
	}
	s := spec("sb_1")
	s.Image, s.SnapshotID, s.Kind, s.ColdBoot = "", "snap_1", Resume, false
	s.MemoryMB = 256
	if _, err := h.Start(t.Context(), s, "rst_2"); !errors.As(err, new(*LockedError)) {
		t.Errorf("another size: %v", err)
	}
	s.MemoryMB = 128
	w.failAt("restore", errors.New("bad state"))
	if _, err := h.Start(t.Context(), s, "rst_2"); !errors.As(err, new(*RestoreError)) {
		t.Errorf("bad state: %v", err)
	}
	if m, err := h.Find("sb_1"); err != nil || m.Status().State != Paused {
		t.Errorf("after a failed resume it is not PAUSED: %v", err)
	}
	s.Policy = PreferMemory
	got, err := h.Start(t.Context(), s, "rst_3")
	if err != nil || got.Receipt.Kind != DiskBoot || !strings.Contains(got.Receipt.Fallback, "bad state") {
		t.Errorf("prefer memory: %+v, %v", got.Receipt, err)
	}
}

func TestAPageThatAVMMCannotGetWhileItLoadsEndsTheStartWithTheReason(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	m := start(t, h, spec("sb_1"))
	if _, _, err := m.Pause(t.Context(), "snap_1"); err != nil {
		t.Fatal(err)
	}
	reached, open := w.block("restore")
	defer open()
	go func() {
		<-reached
		w.mu.Lock()
		defer w.mu.Unlock()
		close(w.memory.failed)
	}()
	s := spec("sb_1")
	s.Image, s.SnapshotID, s.Kind, s.ColdBoot, s.Policy = "", "snap_1", Resume, false, PreferMemory
	got, err := h.Start(t.Context(), s, "rst_2")
	if err != nil || got.Receipt.Kind != DiskBoot || !strings.Contains(got.Receipt.Fallback, ErrDamaged.Error()) {
		t.Errorf("prefer memory: %+v, %v", got.Receipt, err)
	}
}

func TestADamagedSnapshotIsNoObstacleToABootFromItsDisk(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	m := start(t, h, spec("sb_1"))
	if _, _, err := m.Pause(t.Context(), "snap_1"); err != nil {
		t.Fatal(err)
	}
	s := spec("sb_1")
	s.Image, s.SnapshotID, s.Kind, s.ColdBoot = "", "snap_1", Resume, false
	w.failAt("open snap_1", fmt.Errorf("state: %w", ErrDamaged))
	if _, err := h.Start(t.Context(), s, "rst_2"); !errors.Is(err, ErrDamaged) {
		t.Errorf("memory required: %v", err)
	}
	s.Policy = PreferMemory
	w.failAt("open the disk of snap_1", fmt.Errorf("disk.hdr: %w", ErrDamaged))
	if _, err := h.Start(t.Context(), s, "rst_3"); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "disk.hdr") {
		t.Errorf("the disk is damaged too: %v", err)
	}
	w.failAt("open the disk of snap_1", nil)
	got, err := h.Start(t.Context(), s, "rst_4")
	if err != nil || got.Receipt.Kind != DiskBoot || !strings.Contains(got.Receipt.Fallback, "state") {
		t.Errorf("prefer memory: %+v, %v", got.Receipt, err)
	}
}

func TestIllegalOperationsNameTheStateAndWhatIsLegal(t *testing.T) {
	ops := map[string]func(*Host, *Machine) error{
		"start": func(h *Host, _ *Machine) error { _, err := h.Start(t.Context(), spec("sb_1"), "rst_9"); return err },
		"pause": func(_ *Host, m *Machine) error { _, _, err := m.Pause(t.Context(), "snap_9"); return err },
		"snapshot": func(_ *Host, m *Machine) error {
			_, err := m.Snapshot(t.Context(), SnapshotRequest{ID: "snap_9"})
			return err
		},
		"fork": func(_ *Host, m *Machine) error {
			_, _, err := m.Fork(t.Context(), "snap_9", []string{"sb_9"})
			return err
		},
		"exec": func(_ *Host, m *Machine) error { _, err := m.Guest("exec"); return err },
	}
	check := func(t *testing.T, h *Host, m *Machine, state State, legal ...string) {
		t.Helper()
		for name, op := range ops {
			want := true
			for _, l := range legal {
				want = want && l != name
			}
			err := op(h, m)
			ill := (*IllegalError)(nil)
			if !want {
				continue
			}
			if !errors.As(err, &ill) || ill.State != state || len(ill.Legal) == 0 || !strings.Contains(err.Error(), string(state)) {
				t.Errorf("%s when %s: %v", name, state, err)
			}
		}
	}
	w := newWorld()
	h := w.newHost(t)
	var wg sync.WaitGroup
	reached, open := w.block("boot")
	wg.Go(func() { start(t, h, spec("sb_1")) })
	<-reached
	m, err := h.Find("sb_1")
	if err != nil {
		t.Fatal(err)
	}
	check(t, h, m, Starting)
	open()
	wg.Wait()
	if _, err := h.Start(t.Context(), spec("sb_1"), "rst_9"); !errors.As(err, new(*IllegalError)) {
		t.Errorf("start of a running one: %v", err)
	}
	reached, open = w.block("commit")
	wg.Go(func() {
		if _, _, err := m.Pause(t.Context(), "snap_1"); err != nil {
			t.Error(err)
		}
	})
	<-reached
	check(t, h, m, Pausing)
	open()
	wg.Wait()
	check(t, h, m, Paused, "start")
}

func TestRoomIsTakenWholeOrNotAtAll(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	up, refused := 0, 0
	for i := range 20 {
		wg.Go(func() {
			_, err := h.Start(t.Context(), spec(fmt.Sprintf("sb_%d", i)), fmt.Sprintf("rst_%d", i))
			mu.Lock()
			defer mu.Unlock()
			full := (*ExhaustedError)(nil)
			switch {
			case err == nil:
				up++
			case errors.As(err, &full):
				refused++
				if !strings.Contains(err.Error(), "asked: 1 vCPUs") || !strings.Contains(err.Error(), "free: ") || !strings.Contains(err.Error(), "slots") {
					t.Error(err)
				}
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if up != 4 || refused != 16 {
		t.Errorf("%d are up and %d were refused", up, refused)
	}
}

func TestAFailedForkLeavesTheSourceAlone(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	m := start(t, h, spec("sb_1"))
	w.failAt("restore", errors.New("as told"))
	if _, _, err := m.Fork(t.Context(), "snap_1", []string{"sb_2", "sb_3"}); err == nil {
		t.Fatal("the fork succeeded")
	}
	if len(h.List()) != 1 || !w.vm("sb_1").isRunning() || len(w.snaps) != 0 || h.ledger.Used().Slots != 1 {
		t.Errorf("left: %v, snapshots %v, room %s", h.List(), w.snaps, h.ledger.Used())
	}
	w.failAt("restore", nil)
	if _, _, err := m.Fork(t.Context(), "snap_1", []string{"sb_2", "sb_3", "sb_4", "sb_5"}); !errors.As(err, new(*ExhaustedError)) {
		t.Errorf("a fork that does not fit: %v", err)
	}
	if n := w.count("stop"); n != 1 {
		t.Errorf("the source was stopped %d times", n)
	}
	for range 2 {
		copies, _, err := m.Fork(t.Context(), "snap_2", []string{"sb_2", "sb_3"})
		if err != nil || len(copies) != 2 || copies[0].State != Running || copies[0].Spec.Kind != ForkCopy {
			t.Fatalf("fork: %v, %v", copies, err)
		}
	}
}

func TestOneFirstBootServesAllWhoWaitForIt(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	reached, open := w.block("boot")
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			s := spec(fmt.Sprintf("sb_%d", i))
			s.ColdBoot = false
			start(t, h, s)
		})
	}
	<-reached
	open()
	wg.Wait()
	if b, r := w.count("boot"), w.count("restore"); b != 1 || r != 3 {
		t.Errorf("%d boots and %d restores", b, r)
	}
	if m, _ := h.Find("sb_1"); m.Receipt().Kind != Spawn || m.Receipt().SnapshotID == "" {
		t.Errorf("receipt %+v", m.Receipt())
	}
}

func TestAFirstBootWhoseVMEndsIsBootedAgain(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	reached, _ := w.block("after restore")
	started := make(chan error, 1)
	go func() {
		s := spec("sb_1")
		s.ColdBoot = false
		_, err := h.Start(t.Context(), s, "rst_1")
		started <- err
	}()
	<-reached
	again, open := w.block("after restore")
	w.mu.Lock()
	vms := slices.Collect(maps.Values(w.vms))
	w.mu.Unlock()
	for _, vm := range vms {
		vm.die("the guest gave its boot up")
	}
	select {
	case <-again:
	case err := <-started:
		t.Fatal(err)
	}
	open()
	if err := <-started; err != nil || w.count("boot") != 2 || w.count("restore") != 1 {
		t.Errorf("%v after %d boots and %d restores", err, w.count("boot"), w.count("restore"))
	}
}

func TestAnIdleSandboxIsPausedAndABusyOneIsNot(t *testing.T) {
	inBubble(t, 0.2, func(t *testing.T, w *world, h *Host, idle *Machine) {
		sub := h.Watch(256)
		defer sub.Close()
		busy := start(t, h, timed("sb_2"))
		end := busy.Use()
		st := waitState(t, sub, "sb_1", Paused)
		if !st.AutoPaused || st.SnapshotID == "" || !strings.HasPrefix(st.Reason, "inactive for 1m0s: no call") || idle.Status().State != Paused {
			t.Errorf("paused as %+v", st)
		}
		if busy.Status().State != Running {
			t.Errorf("the busy one is %s", busy.Status().State)
		}
		w.mu.Lock()
		w.keep = 1
		w.mu.Unlock()
		end()
		wait(5 * time.Minute)
		if busy.Status().State != Running {
			t.Errorf("one whose process holds the timer is %s", busy.Status().State)
		}
		w.mu.Lock()
		w.keep = 0
		w.mu.Unlock()
		waitState(t, sub, "sb_2", Paused)
		old := spec("sb_3")
		old.Expire = time.Now().Add(20 * time.Second)
		start(t, h, old)
		if st := waitState(t, sub, "sb_3", Stopped); st.Reason == "" {
			t.Error("no reason for the end of its lifetime")
		}
	})
}

func TestASlowWatcherIsToldThatItMissedSomething(t *testing.T) {
	h := newHub()
	s := h.subscribe(4)
	for i := range 10 {
		h.publish(Status{Spec: Spec{ID: fmt.Sprint(i)}})
	}
	for i := range 3 {
		if e := <-s.Events(); e.Status.Spec.ID != fmt.Sprint(i) {
			t.Errorf("event %d is %+v", i, e)
		}
	}
	if e := <-s.Events(); !e.Resync {
		t.Errorf("no resync but %+v", e)
	}
	s.Resynced()
	h.publish(Status{Spec: Spec{ID: "x"}})
	if e := <-s.Events(); e.Status.Spec.ID != "x" {
		t.Errorf("then %+v", e)
	}
	s.Close()
}

func TestWhatAFormerAgentHadIsTakenBackOrBuried(t *testing.T) {
	w := newWorld()
	dir := t.TempDir()
	h := w.host(t, dir)
	start(t, h, spec("sb_1"))
	start(t, h, spec("sb_2"))
	m := start(t, h, spec("sb_3"))
	if _, _, err := m.Pause(t.Context(), "snap_1"); err != nil {
		t.Fatal(err)
	}
	// The agent goes; its VMs live on. Of sb_2 the journal knows a process that is not there.
	if err := h.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	rec := func(id string) Record {
		entries, err := h.journal.Load()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.ID == id {
				return e.Record
			}
		}
		t.Fatalf("no record of %s", id)
		return Record{}
	}
	r := rec("sb_1")
	if r.Base != "1" {
		t.Errorf("the journal says that it is of image %q; it must say which by the id, as the name may come to mean another", r.Base)
	}
	r.VM.StartTime = ownStartTime(t)
	if err := h.journal.Put("sb_1", r); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	clear(w.held)
	w.mu.Unlock()
	var kept Keep
	h2 := w.host(t, dir)
	if err := h2.TakeBack(t.Context(), []Sweeper{{"things", func(_ context.Context, k Keep) ([]string, error) {
		kept = k
		return []string{"a thing"}, nil
	}}}); err != nil {
		t.Fatal(err)
	}
	if len(kept.IDs) != 1 || kept.IDs[0] != "sb_1" || len(kept.Slots) != 1 {
		t.Errorf("kept %+v", kept)
	}
	for id, want := range map[string]State{"sb_1": Running, "sb_2": Failed, "sb_3": Paused} {
		m, err := h2.Find(id)
		if err != nil || m.Status().State != want {
			t.Errorf("%s: %v, %v; want %s", id, m.Status(), err, want)
		}
	}
	if back, _ := h2.Find("sb_1"); back.takenBack.IsZero() {
		t.Error("the timer of what was taken back goes on from the journal")
	}
	if used := h2.ledger.Used(); used.Slots != 1 {
		t.Errorf("room %s", used)
	}
	if err := h2.Close(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if left := w.holdings(); left != "" {
		t.Errorf("left behind: %s", left)
	}
}
