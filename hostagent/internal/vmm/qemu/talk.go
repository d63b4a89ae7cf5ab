package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu/qmp"
)

// moment is how long a process may take to end after it has closed its connection.
const moment = 5 * time.Second

// alone runs f while no other operation is under way.
func (v *VM) alone(ctx context.Context, f func() error) error {
	select {
	case v.busy <- struct{}{}:
	case <-v.done:
		return v.gone()
	case <-ctx.Done():
		return slow(ctx, fmt.Errorf("wait for an operation on the VM to end: %w", context.Cause(ctx)))
	}
	defer func() { <-v.busy }()
	return f()
}

// do has QEMU execute a command, in bounded time.
func (v *VM) do(ctx context.Context, command string, args, out any) error {
	ctx, cancel := v.bounded(ctx)
	defer cancel()
	return v.explain(ctx, v.client.Do(ctx, command, args, out))
}

func (v *VM) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, v.driver.conf.Timeout, fmt.Errorf("no answer within %v: %w", v.driver.conf.Timeout, context.DeadlineExceeded))
}

// explain puts an error in the words of package vmm.
func (v *VM) explain(ctx context.Context, err error) error {
	var refusal *qmp.Error
	switch {
	case err == nil || errors.As(err, &refusal):
		return err
	case errors.Is(err, qmp.ErrGarbage):
		return fmt.Errorf("%w: %w", vmm.ErrUnresponsive, err)
	case v.ends(ctx, err):
		return v.gone()
	}
	return slow(ctx, err)
}

// slow tells a far end that took too long from a caller that gave up.
func slow(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: %w", vmm.ErrUnresponsive, err)
}

// ends tells whether the process has ended, which a closed connection announces.
func (v *VM) ends(ctx context.Context, err error) bool {
	wait := time.Duration(0)
	for _, end := range []error{qmp.ErrClosed, unix.ECONNREFUSED, unix.EPIPE, unix.ECONNRESET, os.ErrNotExist} {
		if errors.Is(err, end) {
			wait = moment
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-v.proc.Done():
		return true
	case <-v.detached:
		return false
	case <-timer.C:
	case <-ctx.Done():
	}
	select {
	case <-v.proc.Done():
		return true
	default:
		return false
	}
}

// gone is the error of a VM whose process has ended.
func (v *VM) gone() error {
	select {
	case <-v.done:
		return fmt.Errorf("%w: %s", vmm.ErrGone, v.exit.Reason)
	default:
		// The watcher has not got round to it yet.
		return fmt.Errorf("%w: %s", vmm.ErrGone, v.reason(v.proc.Exit()))
	}
}

// stopped returns QEMU's word for the state of a VM that stands still.
func (v *VM) stopped(ctx context.Context) (string, error) {
	var status struct {
		Running bool
		Status  string
	}
	if err := v.do(ctx, "query-status", nil, &status); err != nil {
		return "", err
	}
	if status.Running {
		return "", vmm.ErrNotStopped
	}
	return status.Status, nil
}
