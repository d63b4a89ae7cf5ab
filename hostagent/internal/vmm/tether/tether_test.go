package tether_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/launch"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errClosed  = errors.New("closed")
	errGarbage = errors.New("garbage")
	errRefused = errors.New("refused")
)

// conn is a connection that ends when it is told to.
type conn struct {
	once sync.Once
	done chan struct{}
}

func newConn() *conn                  { return &conn{done: make(chan struct{})} }
func (c *conn) Done() <-chan struct{} { return c.done }
func (c *conn) Close() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

// vm is a process under test: a shell that runs until it is told to end, by closing its input.
type vm struct {
	*tether.Tether
	fleet *tether.Fleet
	input *os.File
	mu    sync.Mutex // guards freed
	freed []string
}

func (v *vm) note(what string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.freed = append(v.freed, what)
}

func (v *vm) notes() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return strings.Join(v.freed, " ")
}

func newVM(t *testing.T) *vm {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests start processes of another user: run them as root")
	}
	const user = 65534
	dir := t.TempDir()
	if err := os.Chown(dir, user, user); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	proc, err := launch.Start(t.Context(), launch.Spec{
		Path: "/bin/sh", Args: []string{"-c", "read line <&3; exit 7"}, UID: user, GID: user, RoomAt: dir, Files: []*os.File{r},
		Binds: append(launch.System(), launch.Bind{Path: dir, Writable: true}),
	})
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	v := &vm{fleet: &tether.Fleet{}, input: w}
	v.Tether = tether.New(v.fleet, proc, tether.Config{
		ID: "sb_1", Timeout: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
		Protocol: tether.Protocol{Closed: errClosed, Garbage: errGarbage, Refusal: func(err error) bool { return errors.Is(err, errRefused) }},
		Reason: func(e vmm.Exit) vmm.Exit {
			e.Reason = "the driver says: " + e.Reason
			return e
		},
		Ended: func() error { v.note("ended"); return nil },
		LetGo: func() { v.note("let go") },
	})
	t.Cleanup(func() {
		w.Close()
		pid, start := proc.PID(), proc.StartTime()
		v.Discard()
		if p, err := launch.Reopen(pid, start); err == nil { // let go
			if err := p.Kill(context.Background()); err != nil {
				t.Error(err)
			}
			p.Close()
		}
	})
	return v
}

func watched(t *testing.T) (*vm, *conn) {
	t.Helper()
	v, c := newVM(t), newConn()
	v.Watch(c)
	t.Cleanup(func() { c.Close() })
	return v, c
}

func await(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s has not come", what)
	}
}

func TestAnEndIsSeenOnceTheConnectionHasEndedAndAllIsFree(t *testing.T) {
	v, c := watched(t)
	v.input.Close()
	await(t, v.Process().Done(), "the process's end")
	select {
	case <-v.Done():
		t.Error("it is done, and the connection has more to say")
	default:
	}
	if exit := v.Exit(); exit != (vmm.Exit{}) || v.notes() != "" {
		t.Errorf("before Done: %+v, %q", exit, v.notes())
	}
	c.Close()
	await(t, v.Done(), "Done")
	if exit := v.Exit(); exit.Code != 7 || exit.Reason != "the driver says: the VMM exited with code 7" || v.notes() != "ended" {
		t.Errorf("%+v, freed: %q", exit, v.notes())
	}
	v.fleet.Close()
	v.LetGo()
	if err := v.Kill(t.Context()); err != nil || v.notes() != "ended" {
		t.Errorf("afterwards: %v, freed: %q", err, v.notes())
	}
}

func TestAProcessThatIsLetGoLivesOnAndIsReopened(t *testing.T) {
	v, c := watched(t)
	guarded := make(chan struct{})
	v.Go(func() { <-v.Loose(); close(guarded) })
	h := v.Handle("some", "/control")
	v.fleet.Close()
	await(t, guarded, "the end of what runs beside")
	await(t, c.Done(), "the connection's end")
	if v.notes() != "let go" {
		t.Errorf("freed: %q", v.notes())
	}
	if _, err := tether.Reopen("other", h); err == nil || !strings.Contains(err.Error(), `belongs to the driver "some", not "other"`) {
		t.Errorf("by another driver: %v", err)
	}
	p, err := tether.Reopen("some", h)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := tether.Reopen("some", h); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("when it has ended: %v", err)
	}
}

func TestWhatIsDiscardedEndsWatchedOrNot(t *testing.T) {
	unwatched := newVM(t)
	seen, c := watched(t)
	c.Close()
	for _, v := range []*vm{unwatched, seen} {
		v.Discard()
		await(t, v.Done(), "Done")
		if v.Exit().Signal != 9 || v.notes() != "ended" {
			t.Errorf("%+v, freed: %q", v.Exit(), v.notes())
		}
	}
}

func TestOperationsRunOneAtATimeAndNoneOnAVMThatIsGone(t *testing.T) {
	v, c := watched(t)
	within, leave := make(chan struct{}), make(chan struct{})
	var first sync.WaitGroup
	first.Go(func() {
		if err := v.Alone(t.Context(), func() error { close(within); <-leave; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-within
	late, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := v.Alone(late, func() error { t.Error("two at a time"); return nil }); !errors.Is(err, vmm.ErrUnresponsive) {
		t.Errorf("one that waits too long: %v", err)
	}
	gaveUp, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.Alone(gaveUp, func() error { t.Error("two at a time"); return nil }); !errors.Is(err, context.Canceled) || errors.Is(err, vmm.ErrUnresponsive) {
		t.Errorf("one whose caller gives up: %v", err)
	}
	c.Close()
	var second sync.WaitGroup
	second.Go(func() {
		if err := v.Alone(t.Context(), func() error { t.Error("it runs"); return nil }); !errors.Is(err, vmm.ErrGone) {
			t.Errorf("one that waits as the VM ends: %v", err)
		}
	})
	if err := v.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.Wait()
	close(leave)
	first.Wait()
	if err := v.Alone(t.Context(), func() error { t.Error("it runs"); return nil }); !errors.Is(err, vmm.ErrGone) || !strings.Contains(err.Error(), "SIGKILL") {
		t.Errorf("one that comes after: %v", err)
	}
}

func TestAnswersAreTranslated(t *testing.T) {
	v, _ := watched(t)
	answer := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	if err := v.Ask(t.Context(), answer(nil)); err != nil {
		t.Errorf("an answer: %v", err)
	}
	if err := v.Ask(t.Context(), answer(errRefused)); err != errRefused {
		t.Errorf("a refusal: %v", err)
	}
	for _, err := range []error{errGarbage, io.ErrUnexpectedEOF} {
		if got := v.Ask(t.Context(), answer(err)); !errors.Is(got, vmm.ErrUnresponsive) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
	// No answer: the question is given up in the time that was configured, and says in which.
	err := v.Ask(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) })
	if !errors.Is(err, vmm.ErrUnresponsive) || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Errorf("none: %v", err)
	}
}

func TestAClosedConnectionIsTakenForTheEndOnlyWhenTheProcessEnds(t *testing.T) {
	v, c := watched(t)
	if v.Ended(t.Context(), io.ErrUnexpectedEOF) {
		t.Error("another error is no end")
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if v.Ended(short, errClosed) {
		t.Error("the connection is closed, and the process runs")
	}
	v.input.Close()
	if !v.Ended(t.Context(), errClosed) {
		t.Error("the process ends, and has the time to")
	}
	if err := v.Explain(t.Context(), errClosed); !errors.Is(err, vmm.ErrGone) || !strings.Contains(err.Error(), "the driver says: the VMM exited with code 7") {
		t.Errorf("before Done: %v", err)
	}
	c.Close()
	await(t, v.Done(), "Done")
}

func TestAMeasurementOfWhatIsGoneSaysSo(t *testing.T) {
	v, c := watched(t)
	if n, err := v.Measure(v.Process().AnonymousBytes); err != nil || n <= 0 {
		t.Errorf("it has %d bytes, %v", n, err)
	}
	failure := errors.New("failure")
	if _, err := v.Measure(func() (int64, error) { return 0, failure }); err != failure {
		t.Errorf("a failure: %v", err)
	}
	c.Close()
	if err := v.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Measure(v.Process().AnonymousBytes); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("of a process that has ended: %v", err)
	}
}
