package rpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/scheduler/baseline"
	"github.com/coveyhq/covey/scheduler/book"
	"github.com/coveyhq/covey/scheduler/plan"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/caller"
)

// Cordons remembers which hosts are cordoned.
type Cordons interface {
	Set(ctx context.Context, hostID string, cordoned bool) error
}

// Baselines remembers the CPU baselines of pools.
type Baselines interface {
	// Get is a pool's, For what holds for a host, where that is known.
	Get(label string) (baseline.Baseline, bool)
	For(labels map[string]string) (b baseline.Baseline, known bool)
	Set(ctx context.Context, b baseline.Baseline) (baseline.Baseline, error)
	// Changed is closed with the next change.
	Changed() <-chan struct{}
}

// Others are the schedulers that run beside this one.
type Others interface {
	// Release has the one that made a reservation give it back, as far as they can be reached: it ends by itself some day.
	Release(ctx context.Context, reservationID string)
}

// Server serves both services of covey.scheduler.v1.
type Server struct {
	// Others is nil where there are none. It is set before the first call.
	Others Others
	// StoreTime bounds how long it is waited for Consul to store a cordon or baseline: one that is cut off does not answer. It is set before the
	// first call. Default 10 s.
	StoreTime time.Duration

	schedulerv1.UnimplementedSchedulerServiceServer
	schedulerv1.UnimplementedHostsServiceServer
	book      *book.Book
	cordons   Cordons
	baselines Baselines
	draining  <-chan struct{}
	readers   sync.WaitGroup
}

// Register adds the services to a server. Heartbeat streams end when draining is closed.
func Register(r grpc.ServiceRegistrar, b *book.Book, c Cordons, baselines Baselines, draining <-chan struct{}) *Server {
	s := &Server{StoreTime: 10 * time.Second, book: b, cordons: c, baselines: baselines, draining: draining}
	schedulerv1.RegisterSchedulerServiceServer(r, s)
	schedulerv1.RegisterHostsServiceServer(r, s)
	return s
}

// Wait returns when nothing of the streams runs any more. Call it after the server has stopped.
func (s *Server) Wait() { s.readers.Wait() }

// Place implements schedulerv1.SchedulerServiceServer.
func (s *Server) Place(ctx context.Context, p *schedulerv1.PlaceRequest) (*schedulerv1.PlaceResponse, error) {
	r, err := toRequest("", p)
	if err != nil {
		return nil, err
	}
	placed, err := s.place(ctx, r)
	if err != nil {
		return nil, toStatus(err)
	}
	return &schedulerv1.PlaceResponse{HostId: placed.HostID, Address: placed.Address, ReservationId: placed.ReservationID, Why: placed.Decision.Why(r)}, nil
}

// place waits, while the scheduler is warming up, for hosts that it may not know yet.
func (s *Server) place(ctx context.Context, r *plan.Request) (book.Placement, error) {
	for {
		changed, left := s.book.Changed(), s.book.WarmUpLeft()
		if s.book.Ready() || left == 0 {
			placed, err := s.book.Place(r)
			if err == nil || left == 0 {
				return placed, err
			}
		}
		if err := wait(ctx, changed, left); err != nil {
			return book.Placement{}, err
		}
	}
}

func toStatus(err error) error {
	var none *plan.NoHostError
	if !errors.As(err, &none) {
		return err
	}
	reason := apierr.NoCapacity
	if none.Hopeless {
		reason = "NO_SUITABLE_HOST"
	}
	return apierr.E(codes.ResourceExhausted, reason, none.Error(), "asked", none.Asked.String(), "free", none.Free.String())
}

// ReleaseReservation implements schedulerv1.SchedulerServiceServer.
func (s *Server) ReleaseReservation(ctx context.Context, p *schedulerv1.ReleaseReservationRequest) (*schedulerv1.ReleaseReservationResponse, error) {
	if p.GetReservationId() == "" {
		return nil, apierr.Field("reservation_id", "is required")
	}
	if !s.book.Release(p.GetReservationId()) && s.Others != nil && !p.GetForwarded() {
		s.Others.Release(ctx, p.GetReservationId())
	}
	return &schedulerv1.ReleaseReservationResponse{}, nil
}

type beats = grpc.BidiStreamingServer[schedulerv1.HeartbeatRequest, schedulerv1.HeartbeatResponse]

// Heartbeat implements schedulerv1.SchedulerServiceServer.
func (s *Server) Heartbeat(stream beats) error {
	in := make(chan *schedulerv1.HeartbeatRequest)
	failed := make(chan error, 1)
	// Recv returns at the latest when this handler has, so that the server waits for the reader and not the handler.
	s.readers.Go(func() { failed <- read(stream, in) })
	var last answer
	changed := s.baselines.Changed()
	for {
		select {
		case p := <-in:
			h, err := toHost(p.GetHost())
			if err != nil {
				return err
			}
			if err := caller.SpeaksFor(stream.Context(), "host.id", h.ID); err != nil {
				return err
			}
			last = answer{h.Labels, s.book.Beat(h, p.GetSandboxIds())}
			if err := s.send(stream, last); err != nil {
				return err
			}
		case <-changed:
			changed = s.baselines.Changed() // Before what has changed is read, so that no change is missed.
			if last.state == plan.Gone {
				continue // It has not said yet who it is.
			}
			if err := s.send(stream, last); err != nil {
				return err
			}
		case err := <-failed:
			return err
		case <-s.draining:
			return apierr.E(codes.Unavailable, "SHUTTING_DOWN", "this scheduler is shutting down; beat to another")
		}
	}
}

// read takes heartbeats in until the stream ends.
func read(stream beats, in chan<- *schedulerv1.HeartbeatRequest) error {
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case in <- p:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// answer is what a host is told: by its heartbeat, and again when a baseline changes.
type answer struct {
	labels map[string]string
	state  plan.State
}

func (s *Server) send(stream beats, a answer) error {
	r := &schedulerv1.HeartbeatResponse{State: states[a.state]}
	if b, known := s.baselines.For(a.labels); known {
		r.CpuBaseline = fromBaseline(b)
	}
	return stream.Send(r)
}
