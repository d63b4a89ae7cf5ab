package peers

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"google.golang.org/grpc"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/services/chassis/page"
	"github.com/coveyhq/covey/services/sandbox"
)

// Scheduler implements sandbox.Scheduler. It also learns the hosts' addresses, which Hosts needs.
type Scheduler struct {
	place schedulerv1.SchedulerServiceClient
	hosts schedulerv1.HostsServiceClient

	mu        sync.Mutex // guards addresses
	addresses map[string]string
}

var _ sandbox.Scheduler = (*Scheduler)(nil)

// NewScheduler speaks to the scheduler over a connection.
func NewScheduler(c grpc.ClientConnInterface) *Scheduler {
	return &Scheduler{
		place: schedulerv1.NewSchedulerServiceClient(c), hosts: schedulerv1.NewHostsServiceClient(c),
		addresses: map[string]string{},
	}
}

// placeTime bounds a placement. A scheduler that is starting again is waited for.
const placeTime = 30 * time.Second

// Place implements sandbox.Scheduler.
func (s *Scheduler) Place(ctx context.Context, r sandbox.PlaceRequest) (sandbox.Placement, error) {
	bounded, cancel := context.WithTimeout(ctx, placeTime)
	defer cancel()
	resp, err := s.place.Place(bounded, encodePlace(r), grpc.WaitForReady(true))
	if err != nil {
		return sandbox.Placement{}, translate(ctx, theScheduler, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addresses[resp.GetHostId()] = resp.GetAddress()
	return sandbox.Placement{HostID: resp.GetHostId(), ReservationID: resp.GetReservationId(), Why: resp.GetWhy()}, nil
}

func encodePlace(r sandbox.PlaceRequest) *schedulerv1.PlaceRequest {
	return &schedulerv1.PlaceRequest{
		SandboxId: r.SandboxID, TenantId: r.Tenant, SnapshotId: r.SnapshotID, CpuFeatures: r.CPUFeatures, Vmm: r.VMM, Machine: r.Machine, KernelId: r.KernelID,
		HostLabels: r.HostLabels, HostId: r.HostID, ExcludeHostIds: r.Exclude, SpreadKey: r.SpreadKey,
		AntiAffinity: r.Apart, ApartFromHostIds: r.ApartFrom,
		Resources: &schedulerv1.Resources{Vcpus: r.VCPUs, MemoryMb: uint64(r.MemoryMB), DiskMb: uint64(r.DiskMB), Slots: 1},
	}
}

// Explain implements sandbox.Scheduler.
func (s *Scheduler) Explain(ctx context.Context, r sandbox.PlaceRequest) ([]sandbox.Verdict, error) {
	resp, err := s.hosts.ExplainPlacement(ctx, &schedulerv1.ExplainPlacementRequest{Place: encodePlace(r)})
	if err != nil {
		return nil, translate(ctx, theScheduler, err)
	}
	list := make([]sandbox.Verdict, len(resp.GetVerdicts()))
	for i, v := range resp.GetVerdicts() {
		list[i] = sandbox.Verdict{HostID: v.GetHostId(), Fits: v.GetFits(), Reasons: v.GetReasons()}
	}
	return list, nil
}

// Cordon implements sandbox.Scheduler.
func (s *Scheduler) Cordon(ctx context.Context, hostID string) error {
	_, err := s.hosts.CordonHost(ctx, &schedulerv1.CordonHostRequest{HostId: hostID, Cordoned: new(true)})
	return translate(ctx, theScheduler, err)
}

// Unplace implements sandbox.Scheduler.
func (s *Scheduler) Unplace(ctx context.Context, reservationID string) error {
	_, err := s.place.ReleaseReservation(ctx, &schedulerv1.ReleaseReservationRequest{ReservationId: reservationID})
	return translate(ctx, theScheduler, err)
}

// pageSize is how many hosts are asked for at once: the most that the scheduler gives.
const pageSize = 1000

func (s *Scheduler) list(ctx context.Context) ([]sandbox.Host, error) {
	var hosts []sandbox.Host
	known := map[string]string{}
	q := &schedulerv1.ListHostsRequest{PageSize: pageSize}
	for resp, err := range page.Each(&q.PageToken, func() (*schedulerv1.ListHostsResponse, error) { return s.hosts.ListHosts(ctx, q) }) {
		if err != nil {
			return nil, translate(ctx, theScheduler, err)
		}
		for _, h := range resp.GetHosts() {
			hosts = append(hosts, sandbox.Host{
				ID: h.GetId(), Address: h.GetAddress(), Lost: h.GetState() == schedulerv1.HostState_HOST_STATE_LOST, HeardTime: stamp(h.GetHeartbeatTime()),
			})
			known[h.GetId()] = h.GetAddress()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Added and not replaced: a scheduler that has just started does not know all hosts yet.
	maps.Copy(s.addresses, known)
	return hosts, nil
}

// freshAddress asks for those who keep what they are told for longer than this service does, and ask again only when it was wrong.
func (s *Scheduler) freshAddress(ctx context.Context, hostID string) (string, error) {
	// Where the scheduler does not answer, what is known is the best there is.
	if _, err := s.list(ctx); err != nil && ctx.Err() != nil {
		return "", err
	}
	return s.address(ctx, hostID)
}

// moved asks where a host is that was not to be reached at an address; "" if still there, or not known.
func (s *Scheduler) moved(ctx context.Context, hostID, from string) string {
	if _, err := s.list(ctx); err != nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.addresses[hostID]; now != from {
		return now
	}
	return ""
}

// address looks a host up, first in what is known.
func (s *Scheduler) address(ctx context.Context, hostID string) (string, error) {
	for _, ask := range []bool{false, true} {
		if ask {
			if _, err := s.list(ctx); err != nil {
				return "", err
			}
		}
		s.mu.Lock()
		addr := s.addresses[hostID]
		s.mu.Unlock()
		if addr != "" {
			return addr, nil
		}
	}
	return "", &sandbox.Error{
		Kind: sandbox.Unavailable, Reason: "HOST_UNKNOWN", Message: fmt.Sprintf("the scheduler knows no host %q", hostID),
		Meta: map[string]string{"host_id": hostID},
	}
}
