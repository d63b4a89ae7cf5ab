package rpc

import (
	"context"

	"google.golang.org/grpc/codes"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// ListHosts implements schedulerv1.HostsServiceServer.
func (s *Server) ListHosts(context.Context, *schedulerv1.ListHostsRequest) (*schedulerv1.ListHostsResponse, error) {
	list := s.book.Hosts()
	resp := &schedulerv1.ListHostsResponse{Hosts: make([]*schedulerv1.Host, len(list))}
	for i, h := range list {
		resp.Hosts[i] = fromStatus(h)
	}
	return resp, nil
}

// ExplainPlacement implements schedulerv1.HostsServiceServer.
func (s *Server) ExplainPlacement(_ context.Context, p *schedulerv1.ExplainPlacementRequest) (*schedulerv1.ExplainPlacementResponse, error) {
	place := p.GetPlace()
	if place == nil {
		return nil, apierr.Field("place", "is required")
	}
	if place.GetSandboxId() == "" {
		place.SandboxId = "sb_explained" // Nothing is reserved for it.
	}
	r, err := toRequest("place.", place)
	if err != nil {
		return nil, err
	}
	e := s.book.Explain(r)
	resp := &schedulerv1.ExplainPlacementResponse{ChosenHostId: e.Chosen, Summary: e.Summary}
	for _, v := range e.Verdicts {
		resp.Verdicts = append(resp.Verdicts, &schedulerv1.HostVerdict{HostId: v.HostID, Fits: v.Fits, Reasons: v.Reasons, Score: v.Score})
	}
	return resp, nil
}

// CordonHost implements schedulerv1.HostsServiceServer.
func (s *Server) CordonHost(ctx context.Context, p *schedulerv1.CordonHostRequest) (*schedulerv1.CordonHostResponse, error) {
	id := p.GetHostId()
	if id == "" {
		return nil, apierr.Field("host_id", "is required")
	}
	known := func() bool {
		_, is := s.book.Host(id)
		return is
	}
	if err := s.warmUp(ctx, known); err != nil {
		return nil, err
	}
	if !known() {
		return nil, unknown(id)
	}
	if err := s.cordons.Set(ctx, id, p.GetCordoned()); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, apierr.E(codes.Unavailable, "CORDON_NOT_STORED", "the host's state could not be stored in Consul; try again", "host_id", id)
	}
	h, is := s.book.Host(id)
	if !is {
		return nil, unknown(id)
	}
	return &schedulerv1.CordonHostResponse{Host: fromStatus(h)}, nil
}

func unknown(id string) error {
	return apierr.E(codes.NotFound, "HOST_UNKNOWN", "no host "+id+" is known", "host_id", id)
}
