package rpc

import (
	"context"
	"time"
)

// warmUp waits, while the scheduler has just started, for hosts that it may not know yet: until what is known is enough, or all that there
// are had the time to be heard from.
func (s *Server) warmUp(ctx context.Context, enough func() bool) error {
	for {
		changed, left := s.book.Changed(), s.book.WarmUpLeft()
		if left == 0 || enough() {
			return nil
		}
		if err := wait(ctx, changed, left); err != nil {
			return err
		}
	}
}

// wait waits for a change, for at most a time. Only the caller's end is an error.
func wait(ctx context.Context, changed <-chan struct{}, left time.Duration) error {
	bounded, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	select {
	case <-changed:
	case <-bounded.Done():
	}
	return ctx.Err()
}
