package access

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// recheck is how often the key of a call that goes on is asked about again.
const recheck = 5 * time.Second

// tie makes the context of a call that ends when its key is revoked, with the status that says so as its cause. Calls go on for hours: a
// process that runs, a watch, a WebSocket through a port. What a key has opened must not outlive it.
//
// Design chosen: a timer for each call, which asks as a new call would, through the cache; so a thousand streams of one key are one question
// every few seconds, and no list of calls has to be kept. Rejected: being told of revocations, which a gateway that was cut off would miss.
func (k *Keys) tie(ctx context.Context, secret string) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	var mu sync.Mutex // guards timer, which may fire before it is assigned
	var timer *time.Timer
	check := func() {
		if _, err := k.find(ctx, secret); status.Code(err) == codes.Unauthenticated {
			cancel(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() == nil {
			timer.Reset(k.recheck)
		}
	}
	mu.Lock()
	timer = time.AfterFunc(k.recheck, check)
	mu.Unlock()
	context.AfterFunc(ctx, func() { // Every call's context ends.
		mu.Lock()
		defer mu.Unlock()
		timer.Stop()
	})
	return ctx
}

// Ended is the status that says why a call was ended from here, because its key was revoked; nil where that is not why ctx ended.
func Ended(ctx context.Context) error {
	if cause := context.Cause(ctx); status.Code(cause) == codes.Unauthenticated {
		return cause
	}
	return nil
}
