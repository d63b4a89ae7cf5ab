package meshtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Overrun is how much longer than on a quiet machine anything may take that is waited for: other meshes, compilers and emulated guests may have most of
// its cores. What is waited for ends the wait, so only a failure takes that long.
const Overrun = 4

// Eventually checks until it is so; the wait is bounded. within is what it takes at most on a quiet machine.
func Eventually(t *testing.T, within time.Duration, what string, is func() bool) {
	t.Helper()
	within *= Overrun
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %s", what, within)
		}
	}
}

// Patiently calls until the answer does not come from the middle of a failure. The request id makes that safe.
func Patiently[R any](ctx context.Context, call func(context.Context) (R, error)) (R, error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := call(ctx)
		switch status.Code(err) {
		case codes.Unavailable, codes.Aborted:
		default:
			return r, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return r, errors.Join(err, ctx.Err())
		}
	}
}
