package machine

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// inBubble runs a host on a fake clock, with a sandbox that is paused after a minute.
func inBubble(t *testing.T, busy float64, test func(t *testing.T, w *world, h *Host, m *Machine)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		h := w.host(t, dir)
		h.conf.Tick, h.conf.BusyCPU = 2*time.Second, busy
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan struct{})
		go func() { h.Run(ctx); close(ran) }()
		m := start(t, h, timed("sb_1"))
		test(t, w, h, m)
		cancel()
		<-ran
		if err := h.Close(context.Background(), true); err != nil {
			t.Error(err)
		}
	})
}

// timed is a sandbox that is paused after a minute.
func timed(id string) Spec {
	s := spec(id)
	s.Timeout = time.Minute
	return s
}

// wait lets the fake clock go on.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) burn(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cpu += d
}

func TestASandboxIsPausedOnceItsTimeoutIsOverAndNotBefore(t *testing.T) {
	inBubble(t, 0.2, func(t *testing.T, _ *world, _ *Host, m *Machine) {
		wait(59 * time.Second)
		if st := m.Status(); st.State != Running {
			t.Fatalf("after 59 s it is %s", st.State)
		}
		m.Touch() // a ping
		wait(59 * time.Second)
		if st := m.Status(); st.State != Running {
			t.Fatalf("59 s after a ping it is %s", st.State)
		}
		wait(4 * time.Second)
		if st := m.Status(); st.State != Paused || !st.AutoPaused {
			t.Fatalf("63 s after a ping it is %s", st.State)
		}
	})
}

func TestAComputingSandboxIsNotIdleUntilItStops(t *testing.T) {
	inBubble(t, 0.2, func(t *testing.T, w *world, _ *Host, m *Machine) {
		for range 100 {
			w.burn(time.Second) // half a CPU
			wait(2 * time.Second)
		}
		if st := m.Status(); st.State != Running {
			t.Fatalf("while it computes it is %s: %s", st.State, st.Reason)
		}
		for range 32 {
			w.burn(20 * time.Millisecond) // the wake-ups of an idle guest
			wait(2 * time.Second)
		}
		if st := m.Status(); st.State != Paused {
			t.Fatalf("a minute after it stopped it is %s", st.State)
		}
	})
}

func TestASandboxThatWaitsForACPUAllTheTimeIsNotIdle(t *testing.T) {
	queue := func(w *world, d time.Duration) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.queued += d
	}
	inBubble(t, 0.2, func(t *testing.T, w *world, _ *Host, m *Machine) {
		for range 100 {
			w.burn(100 * time.Millisecond) // 5 % of a CPU
			queue(w, 1900*time.Millisecond)
			wait(2 * time.Second)
		}
		if st := m.Status(); st.State != Running {
			t.Fatalf("while it computes as well as it can it is %s: %s", st.State, st.Reason)
		}
		for range 32 {
			w.burn(20 * time.Millisecond)
			queue(w, time.Second) // an idle guest's wake-ups, each late
			wait(2 * time.Second)
		}
		if st := m.Status(); st.State != Paused {
			t.Fatalf("a minute after it stopped it is %s", st.State)
		}
	})
}

func TestThreadsAreOnlyAskedWhereNeitherCPUUseNorAStreamSaysEnough(t *testing.T) {
	inBubble(t, 0.2, func(t *testing.T, w *world, _ *Host, m *Machine) {
		wait(4 * time.Second)
		asked := w.count("wanted")
		if asked == 0 {
			t.Error("those of a quiet one were not asked")
		}
		for range 20 {
			w.burn(time.Second)
			wait(2 * time.Second)
		}
		end := m.Use()
		wait(40 * time.Second)
		if n := w.count("wanted") - asked; n > 1 {
			t.Errorf("those of one that computes, or has a stream open, were asked %d times", n)
		}
		end()
		wait(4 * time.Second)
		if w.count("wanted") <= asked+1 {
			t.Error("those of one that is quiet again were not asked")
		}
	})
}

func TestWhatComputedAMomentAgoIsNotPausedBeforeItIsKnownWhetherItWaitsForACPU(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	s := spec("sb_1")
	s.Timeout = time.Second // shorter than a tick
	m := start(t, h, s)
	h.conf.Tick, h.conf.BusyCPU = 2*time.Second, 0.2
	now := time.Now()
	for _, step := range []struct {
		ran, queued time.Duration
		known       bool
	}{
		{0, 0, true}, {time.Second, 0, true}, // It computes: the timer begins anew.
		{100 * time.Millisecond, 1900 * time.Millisecond, false}, {100 * time.Millisecond, 1900 * time.Millisecond, true},
	} {
		now = now.Add(2 * time.Second)
		w.mu.Lock()
		w.cpu += step.ran
		w.queued += step.queued
		w.mu.Unlock()
		if known := m.watchCPU(now); known != step.known {
			t.Errorf("%+v: known is %t", step, known)
		}
	}
}

func TestWithoutAThresholdCPUUseDoesNotCount(t *testing.T) {
	inBubble(t, -1, func(t *testing.T, w *world, _ *Host, m *Machine) {
		for range 32 {
			w.burn(2 * time.Second)
			wait(2 * time.Second)
		}
		if st := m.Status(); st.State != Paused {
			t.Fatalf("it is %s", st.State)
		}
	})
}

func TestAnOpenStreamHoldsTheTimerForHours(t *testing.T) {
	inBubble(t, 0.2, func(t *testing.T, _ *world, _ *Host, m *Machine) {
		end := m.Use()
		wait(3 * time.Hour)
		if st := m.Status(); st.State != Running {
			t.Fatalf("it is %s", st.State)
		}
		end()
		wait(63 * time.Second)
		if st := m.Status(); st.State != Paused {
			t.Fatalf("a minute after the stream's end it is %s", st.State)
		}
	})
}

func TestAnHourOfSamplesIsKept(t *testing.T) {
	inBubble(t, 0.2, func(t *testing.T, w *world, _ *Host, m *Machine) {
		end := m.Use()
		defer end()
		for range 370 {
			w.burn(5 * time.Second)
			wait(10 * time.Second)
		}
		list := m.History()
		last := list[len(list)-1]
		if len(list) != keepSamples || last.Time.Sub(list[0].Time) != (keepSamples-1)*sampleEvery || last.Share < 0.49 || last.Share > 0.51 || last.CPU < 1800*time.Second {
			t.Fatalf("%d samples, the last %+v", len(list), last)
		}
	})
}

func TestAnAgentThatGoesDownFinishesThePauseThatItsTimerBegan(t *testing.T) {
	w := newWorld()
	h := w.host(t, t.TempDir())
	s := spec("sb_1")
	s.Timeout = time.Millisecond
	reached, open := w.block("commit")
	m := start(t, h, s)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { h.Run(ctx); close(ran) }()
	<-reached
	cancel() // The agent is told to end while the snapshot is half made.
	<-ran
	closed := make(chan error, 1)
	go func() { closed <- h.Close(context.Background(), false) }()
	for !h.isClosing() {
		time.Sleep(time.Millisecond)
	}
	open()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if st := m.Status(); st.State != Paused || st.SnapshotID == "" || w.snaps[st.SnapshotID].ID == "" || w.holdings() != "" {
		t.Errorf("it is %+v and holds %q", st, w.holdings())
	}
	entries, err := h.journal.Load()
	if err != nil || len(entries) != 1 {
		t.Fatalf("the journal has %v, %v", entries, err)
	}
	for _, e := range entries {
		if r := e.Record; r.Status.State != Paused {
			t.Errorf("the journal says %s", r.Status.State)
		}
	}
}

func (h *Host) isClosing() bool {
	h.life.Lock()
	defer h.life.Unlock()
	return h.closing
}

func TestAGuestThatIsLateWithAnAnswerIsAskedAgainBeforeItIsPaused(t *testing.T) {
	inBubble(t, 0.2, func(t *testing.T, w *world, _ *Host, m *Machine) {
		w.mu.Lock()
		w.keep = 1 // A process holds the timer, but the guest is too busy to say so for a while.
		w.mu.Unlock()
		w.failAt("metrics", context.DeadlineExceeded)
		wait(66 * time.Second)
		if n := w.count("metrics"); n < 2 || n >= deafAsks {
			t.Fatalf("it was asked %d times", n)
		}
		w.failAt("metrics", nil)
		wait(10 * time.Minute)
		if st := m.Status(); st.State != Running {
			t.Fatalf("one whose process holds the timer is %s: %s", st.State, st.Reason)
		}
		w.failAt("metrics", context.DeadlineExceeded)
		wait(90 * time.Second)
		if st := m.Status(); st.State != Paused {
			t.Fatalf("one whose guest never answers is %s", st.State)
		}
	})
}

func TestTheTimerBeginsAnewWithTheAgent(t *testing.T) {
	w := newWorld()
	h := w.host(t, t.TempDir())
	s := spec("sb_1")
	s.Timeout = time.Minute
	m := start(t, h, s)
	now := time.Now()
	m.lastActive.Store(now.Add(-time.Hour).UnixNano()) // What the journal knows: it was started then.
	if !m.idle(now) {
		t.Fatal("unused for an hour, it is not idle")
	}
	m.takenBack = now
	if m.idle(now.Add(59*time.Second)) || !m.idle(now.Add(61*time.Second)) {
		t.Error("the timer does not begin when the sandbox is taken back")
	}
	if !m.Status().LastActive.Before(now.Add(-time.Minute)) {
		t.Error("taking back counts as use")
	}
}
