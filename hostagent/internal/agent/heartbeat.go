package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
)

const (
	// beatEvery is how often the scheduler hears of the host even if nothing changes.
	beatEvery = 2 * time.Second
	// beatGap is the least time between two heartbeats: changes come in bursts.
	beatGap = 50 * time.Millisecond
	// rebeatFirst and rebeatMost bound the pause before a broken stream is opened again.
	rebeatFirst, rebeatMost = 100 * time.Millisecond, 2 * time.Second
)

// Heartbeat tells a scheduler what the host has, until ctx ends.
type Heartbeat struct {
	service   *Service
	scheduler schedulerv1.SchedulerServiceClient
	log       *slog.Logger
	state     schedulerv1.HostState
}

// NewHeartbeat speaks to the scheduler over a connection.
func NewHeartbeat(s *Service, c grpc.ClientConnInterface, log *slog.Logger) *Heartbeat {
	return &Heartbeat{service: s, scheduler: schedulerv1.NewSchedulerServiceClient(c), log: log}
}

// Run keeps a stream open until ctx ends.
func (h *Heartbeat) Run(ctx context.Context) {
	pause := rebeatFirst
	for ctx.Err() == nil {
		began := time.Now()
		err := h.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > rebeatMost {
			pause = rebeatFirst
		}
		h.log.Info("no heartbeat reaches the scheduler; trying again", "after", pause, "error", err)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		pause = min(2*pause, rebeatMost)
	}
}

// stream opens one stream and beats until it breaks.
func (h *Heartbeat) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := h.scheduler.Heartbeat(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { cancel(h.listen(stream)) })
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		if err := stream.Send(h.beat()); err != nil {
			cancel(err)
			wg.Wait()
			return context.Cause(ctx)
		}
		gap := time.NewTimer(beatGap)
		select {
		case <-gap.C:
		case <-ctx.Done():
			gap.Stop()
			return context.Cause(ctx)
		}
		select {
		case <-tick.C:
		case <-h.service.host.Changed():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (h *Heartbeat) beat() *schedulerv1.HeartbeatRequest {
	r := &schedulerv1.HeartbeatRequest{Host: h.service.describe()}
	for _, st := range h.service.host.List() {
		if st.State.Held() {
			r.SandboxIds = append(r.SandboxIds, st.Spec.ID)
		}
	}
	return r
}

// listen takes the scheduler's answers until the stream ends.
func (h *Heartbeat) listen(stream grpc.BidiStreamingClient[schedulerv1.HeartbeatRequest, schedulerv1.HeartbeatResponse]) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the scheduler ended the stream")
		}
		if err != nil {
			return err
		}
		if s := r.GetState(); s != h.state {
			h.log.Info("the scheduler holds this host for", "state", s)
			h.state = s
		}
		if b := r.GetCpuBaseline(); b != nil {
			if err := h.service.host.SetBaseline(machine.Baseline{Features: b.GetFeatures(), Generation: b.GetGeneration()}); err != nil {
				h.log.Error("what held goes on holding; it is tried again with the next heartbeat", "error", err)
			}
		}
	}
}
