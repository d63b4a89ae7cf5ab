package audit

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

const (
	// every is how often what waits is written.
	every = 500 * time.Millisecond
	// batch is how much is written at once.
	batch = 500
	// maxWaiting bounds what waits: some minutes of a busy gateway whose sandbox service is away.
	maxWaiting = 8192
	// maxTallies bounds how many kinds of calls are told apart within a window; others are summed up by their reason alone.
	maxTallies = 256
	// window is how long calls of one kind are one event.
	window = time.Minute
	// writeTime bounds one writing.
	writeTime = 5 * time.Second
	// maxText bounds each text of an event, bytes.
	maxText = 256
)

// Write writes records: all, or none and an error.
type Write func(ctx context.Context, records []*sandboxv1.AuditRecord) error

// Log is where a gateway's events go. Run must be running.
type Log struct {
	write Write
	log   *slog.Logger
	lost  metric.Int64Counter
	now   func() time.Time
	full  chan struct{} // wakes Run where a batch waits; capacity 1, never closed

	mu      sync.Mutex // guards the rest, and all entries
	waiting []*Entry
	tallies map[kind]*Entry
	since   time.Time // when the tallies' window began
	failing bool
}

// New makes a Log.
func New(write Write, log *slog.Logger, meter metric.Meter) (*Log, error) {
	lost, err := meter.Int64Counter("covey.audit.lost", metric.WithDescription("Events that are missing in the audit log, because there was no room to keep them until they could be written."))
	if err != nil {
		return nil, err
	}
	return &Log{write: write, log: log, lost: lost, now: time.Now, full: make(chan struct{}, 1), tallies: map[kind]*Entry{}}, nil
}

// Event is what is kept of a call.
type Event struct {
	Tenant, KeyID, RequestID, Method, Target, Detail string
}

// kind is what calls have in common that one tally stands for.
type kind struct{ tenant, key, method, target, detail, code, reason string }

// Entry is an event being written. A nil one takes everything and does nothing.
type Entry struct {
	log     *Log
	record  *sandboxv1.AuditRecord
	waits   bool // it is in Log.waiting
	written bool
}

func (l *Log) entry(e Event) *Entry {
	return &Entry{log: l, record: &sandboxv1.AuditRecord{Uid: ulid.Make().String(), Event: &sandboxv1.AuditEvent{
		Time: timestamppb.New(l.now()), TenantId: e.Tenant, KeyId: e.KeyID, RequestId: clip(e.RequestID), Method: clip(e.Method), Target: clip(e.Target),
		Detail: clip(e.Detail), Count: 1,
	}}}
}

// Begin writes an event before its call is carried out. An error is the call's answer: it must not be carried out.
func (l *Log) Begin(ctx context.Context, e Event) (*Entry, error) {
	n := l.entry(e)
	if err := l.write(ctx, []*sandboxv1.AuditRecord{n.record}); err != nil {
		l.log.WarnContext(ctx, "a call is refused, as it cannot be written into the audit log", "method", e.Method, "error", err)
		return nil, apierr.E(codes.Unavailable, "AUDIT_UNAVAILABLE", "the audit log cannot be written now, and without it nothing is changed; try again")
	}
	n.written = true
	return n, nil
}

// Finish writes how a call ended that Begin began. Where that cannot be written now it is later.
func (n *Entry) Finish(ctx context.Context, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	n.record.Event.Code, n.record.Event.Reason = result(err)
	if n.log.write(ctx, []*sandboxv1.AuditRecord{n.record}) != nil {
		n.End(err)
	}
}

// Start has an event written soon.
func (l *Log) Start(e Event) *Entry {
	n := l.entry(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enqueue(n)
	return n
}

// End has it written soon how the call of Start ended.
func (n *Entry) End(err error) {
	if n == nil {
		return
	}
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.record.Event.Code, n.record.Event.Reason = result(err)
	n.log.enqueue(n)
}

// Tally counts a call that ended.
func (l *Log) Tally(e Event, err error) {
	k := kind{tenant: e.Tenant, key: e.KeyID, method: clip(e.Method), target: clip(e.Target), detail: clip(e.Detail)}
	k.code, k.reason = result(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := l.now(); now.Sub(l.since) >= window {
		clear(l.tallies)
		l.since = now
	}
	n := l.tallies[k]
	if n == nil && len(l.tallies) >= maxTallies {
		k = kind{code: k.code, reason: k.reason, detail: "others"}
		e = Event{Detail: k.detail}
		n = l.tallies[k]
	}
	if n == nil {
		n = l.entry(e)
		n.record.Event.Count = 0
		n.record.Event.Code, n.record.Event.Reason = k.code, k.reason
		l.tallies[k] = n
	}
	n.record.Event.Count++
	l.enqueue(n)
}

// enqueue has an entry written with what it says then. mu is held.
func (l *Log) enqueue(n *Entry) {
	if n.waits {
		return
	}
	if len(l.waiting) >= maxWaiting {
		l.lost.Add(context.Background(), 1)
		return
	}
	n.waits = true
	if l.waiting = append(l.waiting, n); len(l.waiting) >= batch {
		select {
		case l.full <- struct{}{}:
		default:
		}
	}
}

// Run writes what waits until ctx ends, and then once more.
func (l *Log) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			l.flush(context.WithoutCancel(ctx))
			return
		case <-tick.C:
		case <-l.full:
		}
		l.flush(ctx)
	}
}

// flush writes what waits, batch by batch, until one cannot be written.
func (l *Log) flush(ctx context.Context) {
	for {
		taken, records := l.take()
		if len(taken) == 0 {
			return
		}
		bounded, cancel := context.WithTimeout(ctx, writeTime)
		err := l.write(bounded, records)
		cancel()
		if l.settle(taken, err) != nil {
			return
		}
	}
}

func (l *Log) take() ([]*Entry, []*sandboxv1.AuditRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := slices.Clone(l.waiting[:min(batch, len(l.waiting))])
	l.waiting = slices.Delete(l.waiting, 0, len(taken))
	records := make([]*sandboxv1.AuditRecord, len(taken))
	for i, n := range taken {
		n.waits = false
		records[i] = proto.CloneOf(n.record)
	}
	return taken, records
}

// settle notes what has been written, and returns the error after which it must be tried again.
func (l *Log) settle(taken []*Entry, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		for _, n := range taken {
			n.written = true
		}
	case status.Code(err) == codes.InvalidArgument: // It would be refused for ever.
		l.lost.Add(context.Background(), int64(len(taken)))
		l.log.Error("events are lost, as the audit log does not take them", "count", len(taken), "error", err)
		return nil
	default:
		for _, n := range taken {
			l.enqueue(n)
		}
	}
	if failing := err != nil; failing != l.failing {
		if l.failing = failing; failing {
			l.log.Warn("the audit log cannot be written now; events wait", "error", err)
		} else {
			l.log.Info("the audit log can be written again")
		}
	}
	return err
}

// result is how a call ended, as the log has it.
func result(err error) (string, string) {
	return code.Code(status.Code(err)).String(), apierr.Reason(err)
}

// clip bounds a text and keeps it legible UTF-8, without which no message could carry it.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxText)], "") }
