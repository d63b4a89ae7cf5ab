package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// table is where events go.
type table struct {
	rows map[string]*sandboxv1.AuditEvent
	err  error
}

func (tb *table) log(t *testing.T) *Log {
	t.Helper()
	tb.rows = map[string]*sandboxv1.AuditEvent{}
	l, err := New(func(_ context.Context, records []*sandboxv1.AuditRecord) error {
		if tb.err == nil {
			for _, r := range records {
				tb.rows[r.GetUid()] = r.GetEvent()
			}
		}
		return tb.err
	}, slog.New(slog.DiscardHandler), noop.Meter{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAnEventIsWrittenWhenItBeginsAndAgainWhenItEnds(t *testing.T) {
	tb := &table{}
	l := tb.log(t)
	n := l.Start(Event{Method: "Exec"})
	for _, want := range []string{"", "UNKNOWN"} {
		l.flush(t.Context())
		if len(tb.rows) != 1 || tb.rows[n.record.GetUid()].GetCode() != want {
			t.Fatalf("%v, want one with code %q", tb.rows, want)
		}
		n.End(errors.New("x"))
	}
}

func TestWhatCannotBeWrittenWaitsWithinBounds(t *testing.T) {
	tb := &table{}
	l := tb.log(t)
	tb.err = errors.New("gone")
	for range maxWaiting + 10 {
		l.Start(Event{Method: "Exec"})
	}
	l.flush(t.Context())
	if len(l.waiting) != maxWaiting {
		t.Fatalf("%d wait", len(l.waiting))
	}
	tb.err = nil
	if l.flush(t.Context()); len(l.waiting) != 0 || len(tb.rows) != maxWaiting {
		t.Errorf("%d wait, %d are written", len(l.waiting), len(tb.rows))
	}
}

func TestAFloodOfRefusalsIsAFewEvents(t *testing.T) {
	tb := &table{}
	l := tb.log(t)
	now := time.Unix(1000, 0)
	l.now = func() time.Time { return now }
	for i := range 10000 {
		l.Tally(Event{Method: "Get", Detail: fmt.Sprint("key ", i%500)}, errors.New("x"))
	}
	l.flush(t.Context())
	var calls uint32
	for _, e := range tb.rows {
		calls += e.GetCount()
	}
	if len(tb.rows) != maxTallies+1 || calls != 10000 {
		t.Errorf("%d events of %d calls", len(tb.rows), calls)
	}
	now = now.Add(window)
	l.Tally(Event{Method: "Get"}, errors.New("x"))
	if l.flush(t.Context()); len(tb.rows) != maxTallies+2 {
		t.Errorf("%d events in the next window", len(tb.rows))
	}
}
