package rpc

import (
	"context"
	"encoding/base64"
	"fmt"
	"sort"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// Sizes of pages, hosts.
const (
	defaultPageSize = 100
	maxPageSize     = 1000
)

// ListHosts implements schedulerv1.HostsServiceServer. A page begins after the last host of the one before, which its token names: so any scheduler
// gives it, and hosts that come and go move no others.
func (s *Server) ListHosts(_ context.Context, p *schedulerv1.ListHostsRequest) (*schedulerv1.ListHostsResponse, error) {
	size := int(p.GetPageSize())
	if size == 0 {
		size = defaultPageSize
	}
	if size > maxPageSize {
		return nil, apierr.Field("page_size", fmt.Sprintf("must be 1 to %d, got %d", maxPageSize, size))
	}
	after, err := base64.RawURLEncoding.DecodeString(p.GetPageToken())
	if err != nil || !utf8.Valid(after) {
		return nil, apierr.Field("page_token", "must be next_page_token of the last answer, or empty for the first page")
	}
	list := s.book.Hosts()
	list = list[sort.Search(len(list), func(i int) bool { return list[i].ID > string(after) }):]
	resp := &schedulerv1.ListHostsResponse{}
	if len(list) > size {
		list = list[:size]
		resp.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(list[size-1].ID))
	}
	resp.Hosts = make([]*schedulerv1.Host, len(list))
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
	if p.Cordoned == nil {
		return nil, apierr.Field("cordoned", "is required: true keeps new sandboxes off, false lets them on again")
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
	bounded, cancel := context.WithTimeout(ctx, s.StoreTime)
	defer cancel()
	if err := s.cordons.Set(bounded, id, p.GetCordoned()); err != nil {
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
