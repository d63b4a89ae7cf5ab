package rpc

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
)

// releaseTime bounds telling the others of a reservation.
const releaseTime = 2 * time.Second

// Schedulers implements Others with a connection to each scheduler that runs, this one too, which does no harm.
//
// Chosen: who is asked to give back what it did not reserve asks all others. There are few of them, and it is seldom: only a start that
// failed gives its room back. Rejected: callers that go back to the scheduler that placed, because that one may be gone, and because each
// caller would have to keep who it was.
type Schedulers struct {
	log *slog.Logger

	mu    sync.Mutex // guards conns
	conns map[grpc.ClientConnInterface]bool
}

// NewSchedulers knows none yet.
func NewSchedulers(log *slog.Logger) *Schedulers {
	return &Schedulers{log: log, conns: map[grpc.ClientConnInterface]bool{}}
}

// Join adds one until ctx ends.
func (o *Schedulers) Join(ctx context.Context, c grpc.ClientConnInterface) {
	o.mu.Lock()
	o.conns[c] = true
	o.mu.Unlock()
	<-ctx.Done()
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, c)
}

// Release implements Others.
func (o *Schedulers) Release(ctx context.Context, reservationID string) {
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	var told sync.WaitGroup
	defer told.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.conns {
		told.Go(func() {
			_, err := schedulerv1.NewSchedulerServiceClient(c).ReleaseReservation(ctx, &schedulerv1.ReleaseReservationRequest{ReservationId: reservationID, Forwarded: true})
			if err != nil {
				o.log.Info("a scheduler was not told that a reservation is given back; it ends by itself", "reservation_id", reservationID, "error", err)
			}
		})
	}
}
