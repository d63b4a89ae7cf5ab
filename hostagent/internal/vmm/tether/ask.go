package tether

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// moment is how long a process may take to end after it has closed its connection.
const moment = 5 * time.Second

// Protocol tells the errors of a connection apart.
type Protocol struct {
	// Closed: the connection has ended. Garbage: the far end said what is not of the protocol.
	Closed, Garbage error
	// Refusal tells an answer that says no; it is the caller's, as it is.
	Refusal func(error) bool
}

// Alone runs f while no other operation is under way.
func (t *Tether) Alone(ctx context.Context, f func() error) error {
	if t.isDone() {
		return t.Gone()
	}
	select {
	case t.busy <- struct{}{}:
	case <-t.done:
		return t.Gone()
	case <-ctx.Done():
		return Slow(ctx, fmt.Errorf("wait for an operation on the VM to end: %w", context.Cause(ctx)))
	}
	defer func() { <-t.busy }()
	return f()
}

// Ask puts a question to the VMM, in bounded time.
func (t *Tether) Ask(ctx context.Context, question func(context.Context) error) error {
	ctx, cancel := t.Bounded(ctx)
	defer cancel()
	return t.Explain(ctx, question(ctx))
}

// Bounded bounds a context by the time that an answer may take.
func (t *Tether) Bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return Within(ctx, t.conf.Timeout)
}

// Within bounds a context, and says in its cause by what.
func Within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v: %w", limit, context.DeadlineExceeded))
}

// Explain puts an error of the connection in the words of package vmm.
func (t *Tether) Explain(ctx context.Context, err error) error {
	switch p := t.conf.Protocol; {
	case err == nil || p.Refusal(err):
		return err
	case errors.Is(err, p.Garbage):
		return fmt.Errorf("%w: %w", vmm.ErrUnresponsive, err)
	case t.Ended(ctx, err):
		return t.Gone()
	}
	return Slow(ctx, err)
}

// Slow tells a far end that took too long from a caller that gave up.
func Slow(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: %w", vmm.ErrUnresponsive, err)
}

// Ended tells whether the process has ended. Where err says that the connection has, which announces it, the process has a moment to.
func (t *Tether) Ended(ctx context.Context, err error) bool {
	wait := time.Duration(0)
	for _, end := range []error{t.conf.Protocol.Closed, unix.ECONNREFUSED, unix.EPIPE, unix.ECONNRESET, os.ErrNotExist} {
		if errors.Is(err, end) {
			wait = moment
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-t.proc.Done():
		return true
	case <-t.loose:
		return false
	case <-timer.C:
	case <-ctx.Done():
	}
	return t.hasEnded()
}

func (t *Tether) hasEnded() bool {
	select {
	case <-t.proc.Done():
		return true
	default:
		return false
	}
}

// Gone is the error of a VM whose process has ended.
func (t *Tether) Gone() error {
	exit := t.Exit()
	if exit.Time.IsZero() {
		// The watcher has not got round to it yet, or there is none.
		exit = t.conf.Reason(t.proc.Exit())
	}
	return fmt.Errorf("%w: %s", vmm.ErrGone, exit.Reason)
}

// Measure reads something of the process, in /proc or its memory.
func (t *Tether) Measure(read func() (int64, error)) (int64, error) {
	if t.isDone() {
		return 0, t.Gone()
	}
	n, err := read()
	if err != nil && t.hasEnded() {
		return 0, t.Gone()
	}
	return n, err
}
