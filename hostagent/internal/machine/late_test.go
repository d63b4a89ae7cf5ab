package machine

import (
	"context"
	"fmt"
	"testing"
	"time"
)

func TestAStartThatIsRepeatedAfterThePauseOfWhatItBeganAnswersAsItDid(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	m := start(t, h, spec("sb_1"))
	if _, _, err := m.Pause(t.Context(), "snap_1"); err != nil {
		t.Fatal(err)
	}
	boots := w.count("boot")
	again, err := h.Start(t.Context(), spec("sb_1"), m.Status().RestoreID)
	if err != nil || again.Status.State != Paused || again.Status.SnapshotID != "snap_1" || again.Receipt.RestoreID != m.Status().RestoreID {
		t.Errorf("repeated: %+v, %v", again, err)
	}
	if w.count("boot") != boots {
		t.Error("it has begun its life again")
	}
}

func TestWhatIsStartedWhileTheHostIsDestroyedIsDestroyedToo(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	start(t, h, spec("sb_1"))
	gate := newSpanGate("hostagent.destroy")
	h.tracer = gate
	closed := make(chan error)
	go func() { closed <- h.Close(context.Background(), true) }()
	<-gate.reached
	start(t, h, spec("sb_2"))
	close(gate.open)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if left := w.holdings(); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestAGuestThatIsSlowToAnswerIsAskedByOneAlone(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	reached, open := w.block("metrics")
	idle := spec("sb_1")
	idle.Timeout = time.Nanosecond
	m := start(t, h, idle)
	for range 10 {
		m.lookAfter(time.Now().Add(time.Hour))
	}
	<-reached
	if n := w.count("metrics"); n != 1 {
		t.Errorf("it was asked %d times at once", n)
	}
	open()
}

func TestAStartWhileATombstoneIsForgottenIsWrittenDown(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	for i := range 50 {
		old := start(t, h, spec("sb_1"))
		if _, _, err := old.Pause(t.Context(), fmt.Sprintf("snap_%d", i)); err != nil {
			t.Fatal(err)
		}
		forgotten := make(chan error)
		go func() { forgotten <- old.Destroy(t.Context(), "") }()
		_, err := h.Start(t.Context(), spec("sb_1"), newID("rst_"))
		if e := <-forgotten; e != nil || err != nil {
			t.Fatal(e, err)
		}
		entries, err := h.journal.Load()
		if err != nil || len(entries) != 1 || entries[0].Record.Status.State != Running {
			t.Fatalf("the journal has %+v, %v", entries, err)
		}
		if err := h.Destroy(t.Context(), "sb_1", ""); err != nil {
			t.Fatal(err)
		}
	}
}
