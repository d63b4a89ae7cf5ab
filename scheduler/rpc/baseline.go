package rpc

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/scheduler/baseline"
	"github.com/coveyhq/covey/scheduler/plan"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// known are the hosts of which heartbeats were heard.
func (s *Server) known() []plan.Host {
	list := s.book.Hosts()
	hosts := make([]plan.Host, len(list))
	for i, h := range list {
		hosts[i] = h.Host
	}
	return hosts
}

// GetBaseline implements schedulerv1.HostsServiceServer.
func (s *Server) GetBaseline(_ context.Context, p *schedulerv1.GetBaselineRequest) (*schedulerv1.GetBaselineResponse, error) {
	if err := baseline.CheckLabel(p.GetLabel()); err != nil {
		return nil, illegal(err)
	}
	pool := baseline.Pool(s.known(), p.GetLabel())
	common := baseline.Common(pool)
	b, has := s.baselines.Get(p.GetLabel())
	resp := &schedulerv1.GetBaselineResponse{CommonFeatures: common}
	if has {
		resp.Baseline = fromBaseline(b)
	}
	for _, h := range pool {
		guest := h.CPUFeatures
		if len(h.Baseline) > 0 {
			guest = baseline.Both(guest, h.Baseline)
		}
		resp.Hosts = append(resp.Hosts, &schedulerv1.HostFeatures{
			HostId: h.ID, BeyondFeatures: baseline.Minus(h.CPUFeatures, common), LackingFeatures: baseline.Minus(b.Features, h.CPUFeatures), GuestFeatures: guest,
			Driver: strings.Join(h.Drivers, ","),
		})
	}
	return resp, nil
}

// SetBaseline implements schedulerv1.HostsServiceServer.
func (s *Server) SetBaseline(ctx context.Context, p *schedulerv1.SetBaselineRequest) (*schedulerv1.SetBaselineResponse, error) {
	// A host that is not known yet may lack what the others have in common.
	if err := s.warmUp(ctx, func() bool { return false }); err != nil {
		return nil, err
	}
	b, err := baseline.Choose(s.known(), p.GetLabel(), p.GetFeatures(), p.GetCommon())
	if err != nil {
		return nil, illegal(err)
	}
	if b, err = s.keep(ctx, b); err != nil {
		return nil, err
	}
	return &schedulerv1.SetBaselineResponse{Baseline: fromBaseline(b)}, nil
}

// ClearBaseline implements schedulerv1.HostsServiceServer.
func (s *Server) ClearBaseline(ctx context.Context, p *schedulerv1.ClearBaselineRequest) (*schedulerv1.ClearBaselineResponse, error) {
	if err := baseline.CheckLabel(p.GetLabel()); err != nil {
		return nil, illegal(err)
	}
	if _, has := s.baselines.Get(p.GetLabel()); !has && s.lifted(p.GetLabel()) {
		return &schedulerv1.ClearBaselineResponse{}, nil
	}
	if _, err := s.keep(ctx, baseline.Baseline{Label: p.GetLabel()}); err != nil {
		return nil, err
	}
	return &schedulerv1.ClearBaselineResponse{}, nil
}

// lifted tells that hosts of a pool for which there is no baseline have none. They may have one that another scheduler has just set, or this one
// before it was started again without Consul.
func (s *Server) lifted(label string) bool {
	_, known := s.baselines.For(nil)
	return known && !slices.ContainsFunc(baseline.Pool(s.known(), label), func(h plan.Host) bool { return len(h.Baseline) > 0 })
}

func (s *Server) keep(ctx context.Context, b baseline.Baseline) (baseline.Baseline, error) {
	bounded, cancel := context.WithTimeout(ctx, s.StoreTime)
	defer cancel()
	kept, err := s.baselines.Set(bounded, b)
	if err != nil && ctx.Err() != nil {
		return kept, ctx.Err()
	}
	if errors.Is(err, baseline.ErrContended) {
		return kept, apierr.E(codes.Aborted, "CONCURRENT_CHANGE", err.Error()+"; look at it and try again", "label", b.Label)
	}
	if err != nil {
		return kept, apierr.E(codes.Unavailable, "BASELINE_NOT_STORED", "the baseline could not be stored in Consul; try again", "label", b.Label)
	}
	return kept, nil
}

func illegal(err error) error {
	if f := (*baseline.FieldError)(nil); errors.As(err, &f) {
		return apierr.Field(f.Field, f.Message)
	}
	return err
}
