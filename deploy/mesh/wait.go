package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// until calls check until it succeeds, and says what it waited for and what was wrong last if ctx ends first.
func until(ctx context.Context, what string, check func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := check(one)
		cancel()
		if err == nil {
			return nil
		}
		var final *finalError
		if errors.As(err, &final) {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; last: %v", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// finalError ends a wait: trying again cannot help.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }

// freePort finds a port of loopback that nothing listens on now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
