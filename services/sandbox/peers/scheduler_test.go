package peers

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"google.golang.org/grpc"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
)

// paging is a scheduler whose pages have two hosts.
type paging struct {
	schedulerv1.HostsServiceClient
	hosts int
}

func (p paging) ListHosts(_ context.Context, q *schedulerv1.ListHostsRequest, _ ...grpc.CallOption) (*schedulerv1.ListHostsResponse, error) {
	at, _ := strconv.Atoi(q.GetPageToken())
	r := &schedulerv1.ListHostsResponse{}
	for ; at < p.hosts && len(r.GetHosts()) < 2; at++ {
		r.Hosts = append(r.Hosts, &schedulerv1.Host{Id: fmt.Sprint("h", at), Address: fmt.Sprint("10.0.0.", at, ":1")})
	}
	if at < p.hosts {
		r.NextPageToken = strconv.Itoa(at)
	}
	return r, nil
}

func TestHostsOfAllPagesAreKnown(t *testing.T) {
	s := &Scheduler{hosts: paging{hosts: 5}, addresses: map[string]string{}}
	list, err := s.list(t.Context())
	if err != nil || len(list) != 5 {
		t.Errorf("%v, %v", list, err)
	}
	if addr, err := s.address(t.Context(), "h4"); err != nil || addr != "10.0.0.4:1" {
		t.Errorf("the last is at %q, %v", addr, err)
	}
}
