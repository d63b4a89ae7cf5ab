package rpc

import "context"

// warmUp waits, while the scheduler has just started, for hosts that it may not know yet: until what is known is enough, or all that there
// are had the time to be heard from.
func (s *Server) warmUp(ctx context.Context, enough func() bool) error {
	for {
		changed, left := s.book.Changed(), s.book.WarmUpLeft()
		if left == 0 || enough() {
			return nil
		}
		warm, cancel := context.WithTimeout(ctx, left)
		select {
		case <-changed:
		case <-warm.Done():
		}
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
