package machine

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// spanGate stops who is the first to begin a span of one name until it is opened.
type spanGate struct {
	name          string
	reached, open chan struct{}
	once          *sync.Once
}

func newSpanGate(name string) spanGate {
	return spanGate{name, make(chan struct{}), make(chan struct{}), &sync.Once{}}
}

func (g spanGate) Span(ctx context.Context, name string, _ ...string) (context.Context, func(error)) {
	if name == g.name {
		g.once.Do(func() {
			close(g.reached)
			<-g.open
		})
	}
	return ctx, func(error) {}
}

func TestACopyThatIsBeingDestroyedIsNotStarted(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	gate := newSpanGate("hostagent.destroy")
	h.tracer = gate
	copies, err := h.admitCopies(spec("sb_1"), "snap_1", []string{"sb_2"})
	if err != nil {
		t.Fatal(err)
	}
	destroyed := make(chan error)
	go func() { destroyed <- copies[0].Destroy(t.Context(), "") }()
	<-gate.reached
	err = h.startCopy(t.Context(), copies[0])
	close(gate.open)
	if e := <-destroyed; e != nil {
		t.Error(e)
	}
	if !errors.Is(err, ErrDestroyed) || w.count("slot") != 0 {
		t.Errorf("started: %v", err)
	}
	if err := h.startCopy(t.Context(), copies[0]); !errors.Is(err, ErrDestroyed) {
		t.Errorf("started after its end: %v", err)
	}
	if n := len(h.List()); n != 0 {
		t.Errorf("%d machines are listed", n)
	}
}

func TestAForkAtTheEndOfTheAgentGivesItsRoomBackOnce(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	copies, err := h.admitCopies(spec("sb_1"), "snap_1", []string{"sb_2", "sb_3"})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := h.startCopies(t.Context(), copies); !errors.Is(err, ErrClosing) {
		t.Errorf("started: %v", err)
	}
	if used := h.ledger.Used(); used != (Room{}) {
		t.Errorf("room: %s", used)
	}
}
