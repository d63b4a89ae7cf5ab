package rpc_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/scheduler/baseline"
	"github.com/coveyhq/covey/scheduler/book"
	"github.com/coveyhq/covey/scheduler/cordon"
	"github.com/coveyhq/covey/scheduler/rpc"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }

// scheduler is one scheduler over real gRPC.
type scheduler struct {
	t *testing.T
	schedulerv1.SchedulerServiceClient
	hosts schedulerv1.HostsServiceClient
	stop  func()
}

func newScheduler(t *testing.T, timing book.Timing) *scheduler {
	t.Helper()
	d, err := chassis.New(chassis.Config{Service: "covey-scheduler", Drain: 2 * time.Minute}, chassis.WithLogOutput(t.Output()))
	if err != nil {
		t.Fatal(err)
	}
	b := book.New(book.Config{Timing: timing, Log: d.Log()})
	s := rpc.Register(d.Server(), b, cordon.NewStore(nil, b), baseline.NewStore(nil, d.Log()), d.Draining())
	if err := d.Listen(); err != nil {
		t.Fatal(err)
	}
	d.Defer(func() error { s.Wait(); return nil })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stopped := false
	stop := func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	from, err := chassis.New(chassis.Config{Service: "covey-sandbox", Peers: map[string][]string{"covey-scheduler": {d.Addr()}}}, chassis.WithLogOutput(t.Output()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Close() })
	c, err := from.Dial("covey-scheduler")
	if err != nil {
		t.Fatal(err)
	}
	return &scheduler{t, schedulerv1.NewSchedulerServiceClient(c), schedulerv1.NewHostsServiceClient(c), stop}
}

// started is a scheduler that no longer waits for hosts.
var started = book.Timing{WarmUp: time.Nanosecond}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

type beats = grpc.BidiStreamingClient[schedulerv1.HeartbeatRequest, schedulerv1.HeartbeatResponse]

func (s *scheduler) stream() beats {
	s.t.Helper()
	st, err := s.Heartbeat(within(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

func host(id string) *schedulerv1.Host {
	return &schedulerv1.Host{
		Id: id, Address: "10.0.0.1:7000", State: schedulerv1.HostState_HOST_STATE_READY, Zone: "z1", Version: "1",
		Capacity: &schedulerv1.Resources{Vcpus: 8, MemoryMb: 8192, DiskMb: 65536, Slots: 8}, Used: &schedulerv1.Resources{Vcpus: 1, MemoryMb: 512, Slots: 1},
		Running: 1, Labels: map[string]string{"pool": "a"}, CpuFeatures: []string{"avx2", "aes"}, Drivers: []string{"qemu/tcg"}, CachedSnapshots: []string{"snap_2", "snap_1"},
	}
}

func (s *scheduler) beat(st beats, h *schedulerv1.Host, sandboxes ...string) schedulerv1.HostState {
	s.t.Helper()
	if err := st.Send(&schedulerv1.HeartbeatRequest{Host: h, SandboxIds: sandboxes}); err != nil {
		s.t.Fatal(err)
	}
	r, err := st.Recv()
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetState()
}

func asking(sandbox string, vcpus uint32) *schedulerv1.PlaceRequest {
	return &schedulerv1.PlaceRequest{SandboxId: sandbox, Resources: &schedulerv1.Resources{Vcpus: vcpus, MemoryMb: 512, DiskMb: 1024, Slots: 1}}
}

func TestPlacementFromHeartbeatToRelease(t *testing.T) {
	s := newScheduler(t, started)
	st := s.stream()
	if state := s.beat(st, host("a")); state != schedulerv1.HostState_HOST_STATE_READY {
		t.Errorf("the host is told %v", state)
	}
	p, err := s.Place(within(t), asking("sb_1", 7))
	if err != nil || p.GetHostId() != "a" || p.GetAddress() != "10.0.0.1:7000" || !strings.HasPrefix(p.GetReservationId(), "res_") {
		t.Fatalf("got %v, %v", p, err)
	}
	if p.GetWhy() != "it would be 100% full (vCPUs); the best of 1 host looked at" {
		t.Errorf("it is explained by %q", p.GetWhy())
	}
	list, err := s.hosts.ListHosts(within(t), &schedulerv1.ListHostsRequest{})
	if err != nil || len(list.GetHosts()) != 1 {
		t.Fatalf("got %v, %v", list, err)
	}
	h := list.GetHosts()[0]
	if h.GetUsed().GetVcpus() != 8 || h.GetUsed().GetMemoryMb() != 1024 || h.GetCapacity().GetVcpus() != 8 || h.GetRunning() != 1 || h.GetZone() != "z1" ||
		!slices.Equal(h.GetCachedSnapshots(), []string{"snap_1", "snap_2"}) || time.Since(h.GetHeartbeatTime().AsTime()) > time.Minute {
		t.Errorf("the host is listed as %v", h)
	}
	_, err = s.Place(within(t), asking("sb_2", 1))
	if status.Code(err) != codes.ResourceExhausted || apierr.Reason(err) != apierr.NoCapacity ||
		!strings.Contains(err.Error(), "no host fits 1 vCPU, 512 MiB") || !strings.Contains(err.Error(), "most that is free on one is 0 vCPUs, 7168 MiB") {
		t.Errorf("a full fleet answers %v", err)
	}
	if _, err := s.ReleaseReservation(within(t), &schedulerv1.ReleaseReservationRequest{ReservationId: p.GetReservationId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Place(within(t), asking("sb_2", 7)); err != nil {
		t.Error(err)
	}
	s.beat(st, host("a"), "sb_2") // The host shows it, and says that one vCPU is used in all.
	if _, err := s.Place(within(t), asking("sb_3", 7)); err != nil {
		t.Errorf("after the heartbeat: %v", err)
	}
}

func TestASchedulerThatHasJustStartedWaitsForHosts(t *testing.T) {
	s := newScheduler(t, book.Timing{WarmUp: 5 * time.Minute})
	answer := make(chan error, 1)
	ctx := within(t)
	go func() {
		_, err := s.Place(ctx, asking("sb_1", 1))
		answer <- err
	}()
	st := s.stream()
	other := host("other")
	other.State = schedulerv1.HostState_HOST_STATE_DRAINING
	s.beat(st, other)
	select {
	case err := <-answer:
		t.Fatalf("answered before a host that fits was known: %v", err)
	default:
	}
	s.beat(s.stream(), host("a"))
	if err := <-answer; err != nil {
		t.Error(err)
	}
	began := time.Now()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := s.Place(short, asking("sb_2", 100)); err == nil || time.Since(began) > time.Minute {
		t.Errorf("what never fits got %v after %s", err, time.Since(began))
	}
}

func TestCordonedHostsAreToldAndLeftOut(t *testing.T) {
	s := newScheduler(t, started)
	st := s.stream()
	s.beat(st, host("a"))
	r, err := s.hosts.CordonHost(within(t), &schedulerv1.CordonHostRequest{HostId: "a", Cordoned: new(true)})
	if err != nil || r.GetHost().GetState() != schedulerv1.HostState_HOST_STATE_CORDONED {
		t.Fatalf("got %v, %v", r, err)
	}
	if state := s.beat(st, host("a")); state != schedulerv1.HostState_HOST_STATE_CORDONED {
		t.Errorf("the host is told %v", state)
	}
	if _, err := s.Place(within(t), asking("sb_1", 1)); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "1 is cordoned") {
		t.Errorf("got %v", err)
	}
	if _, err := s.hosts.CordonHost(within(t), &schedulerv1.CordonHostRequest{HostId: "a", Cordoned: new(false)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Place(within(t), asking("sb_1", 1)); err != nil {
		t.Error(err)
	}
	_, err = s.hosts.CordonHost(within(t), &schedulerv1.CordonHostRequest{HostId: "nowhere", Cordoned: new(true)})
	if status.Code(err) != codes.NotFound || apierr.Reason(err) != "HOST_UNKNOWN" {
		t.Errorf("an unknown host: %v", err)
	}
}

func TestARequestThatDoesNotSayWhetherToCordonLiftsNoCordon(t *testing.T) {
	s := newScheduler(t, started)
	st := s.stream()
	s.beat(st, host("a"))
	if _, err := s.hosts.CordonHost(within(t), &schedulerv1.CordonHostRequest{HostId: "a", Cordoned: new(true)}); err != nil {
		t.Fatal(err)
	}
	_, err := s.hosts.CordonHost(within(t), &schedulerv1.CordonHostRequest{HostId: "a"})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "cordoned") {
		t.Errorf("got %v", err)
	}
	if state := s.beat(st, host("a")); state != schedulerv1.HostState_HOST_STATE_CORDONED {
		t.Errorf("the host is told %v", state)
	}
}

func TestExplanationsReserveNothing(t *testing.T) {
	s := newScheduler(t, started)
	st := s.stream()
	s.beat(st, host("a"))
	b := host("b")
	b.Labels = nil
	s.beat(st, b)
	place := asking("", 7)
	place.HostLabels, place.SnapshotId = map[string]string{"pool": "a"}, "snap_1"
	for range 2 {
		e, err := s.hosts.ExplainPlacement(within(t), &schedulerv1.ExplainPlacementRequest{Place: place})
		if err != nil || e.GetChosenHostId() != "a" || len(e.GetVerdicts()) != 2 || !strings.Contains(e.GetSummary(), "a fits best") {
			t.Fatalf("got %v, %v", e, err)
		}
		if v := e.GetVerdicts()[1]; v.GetFits() || v.GetScore() != 0 || !slices.Equal(v.GetReasons(), []string{"lacks label pool=a"}) {
			t.Errorf("of b it says %v", v)
		}
	}
}

func TestWrongRequestsNameTheField(t *testing.T) {
	s := newScheduler(t, started)
	huge := asking("sb_1", 1)
	huge.Resources.MemoryMb = 1 << 60
	for field, call := range map[string]func(context.Context) error{
		"sandbox_id": func(ctx context.Context) error { _, err := s.Place(ctx, asking("", 1)); return err },
		"resources":  func(ctx context.Context) error { _, err := s.Place(ctx, asking("sb_1", 0)); return err },
		"resources.memory_mb": func(ctx context.Context) error {
			_, err := s.Place(ctx, huge)
			return err
		},
		"reservation_id": func(ctx context.Context) error {
			_, err := s.ReleaseReservation(ctx, &schedulerv1.ReleaseReservationRequest{})
			return err
		},
		"place": func(ctx context.Context) error {
			_, err := s.hosts.ExplainPlacement(ctx, &schedulerv1.ExplainPlacementRequest{})
			return err
		},
		"host_id": func(ctx context.Context) error {
			_, err := s.hosts.CordonHost(ctx, &schedulerv1.CordonHostRequest{})
			return err
		},
		"host.address": func(context.Context) error {
			st := s.stream()
			if err := st.Send(&schedulerv1.HeartbeatRequest{Host: &schedulerv1.Host{Id: "a", Address: "x"}}); err != nil {
				return err
			}
			_, err := st.Recv()
			return err
		},
	} {
		err := call(within(t))
		if status.Code(err) != codes.InvalidArgument || apierr.Info(err).GetMetadata()["field"] != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestHeartbeatsEndWhenTheSchedulerDoes(t *testing.T) {
	s := newScheduler(t, started)
	st := s.stream()
	s.beat(st, host("a"))
	began := time.Now()
	s.stop()
	if _, err := st.Recv(); status.Code(err) != codes.Unavailable || apierr.Reason(err) != "SHUTTING_DOWN" {
		t.Errorf("got %v", err)
	}
	if d := time.Since(began); d > time.Minute { // It would wait for two.
		t.Errorf("the scheduler took %s to end", d)
	}
}

func TestABaselineReachesHostsAtOnceAndIsShownAndLifted(t *testing.T) {
	s := newScheduler(t, started)
	essential := strings.Fields("apic cmov cx8 fpu fxsr lm mmx msr nx pae pge pse sse sse2 syscall tsc")
	a, b := host("a"), host("b")
	a.CpuFeatures, b.CpuFeatures = append([]string{"avx2", "aes"}, essential...), append([]string{"aes"}, essential...)
	st := s.stream()
	s.beat(st, a)
	s.beat(s.stream(), b)
	ctx := within(t)
	_, err := s.hosts.SetBaseline(ctx, &schedulerv1.SetBaselineRequest{Label: "pool=a", Features: append([]string{"avx2"}, essential...)})
	if status.Code(err) != codes.InvalidArgument || apierr.Info(err).GetMetadata()["field"] != "features" || !strings.Contains(err.Error(), "b lacks avx2") {
		t.Errorf("what b lacks: %v", err)
	}
	set, err := s.hosts.SetBaseline(ctx, &schedulerv1.SetBaselineRequest{Label: "pool=a", Common: true})
	if err != nil || slices.Contains(set.GetBaseline().GetFeatures(), "avx2") || !slices.Contains(set.GetBaseline().GetFeatures(), "aes") {
		t.Fatalf("got %v, %v", set, err)
	}
	told, err := st.Recv() // without another heartbeat
	if err != nil || !slices.Equal(told.GetCpuBaseline().GetFeatures(), set.GetBaseline().GetFeatures()) || told.GetCpuBaseline().GetGeneration() != set.GetBaseline().GetGeneration() {
		t.Fatalf("the host is told %v, %v", told, err)
	}
	a.CpuBaseline = told.GetCpuBaseline()
	s.beat(st, a)
	got, err := s.hosts.GetBaseline(ctx, &schedulerv1.GetBaselineRequest{Label: "pool=a"})
	if err != nil || len(got.GetHosts()) != 2 || !slices.Equal(got.GetHosts()[0].GetBeyondFeatures(), []string{"avx2"}) || slices.Contains(got.GetHosts()[0].GetGuestFeatures(), "avx2") ||
		!slices.Equal(got.GetCommonFeatures(), set.GetBaseline().GetFeatures()) || got.GetBaseline().GetGeneration() != set.GetBaseline().GetGeneration() {
		t.Errorf("it is shown as %v, %v", got, err)
	}
	if _, err := s.hosts.ClearBaseline(ctx, &schedulerv1.ClearBaselineRequest{Label: "pool=a"}); err != nil {
		t.Fatal(err)
	}
	if told, err = st.Recv(); err != nil || told.GetCpuBaseline() == nil || len(told.GetCpuBaseline().GetFeatures()) > 0 || told.GetCpuBaseline().GetGeneration() <= set.GetBaseline().GetGeneration() {
		t.Errorf("after it was lifted the host is told %v, %v", told, err)
	}
	if _, err := s.hosts.ClearBaseline(ctx, &schedulerv1.ClearBaselineRequest{Label: "nonsense"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a label that is none: %v", err)
	}
}

func TestABaselineIsLiftedByASchedulerThatDoesNotKnowOfIt(t *testing.T) {
	s := newScheduler(t, started)
	a := host("a")
	a.CpuBaseline = &schedulerv1.CpuBaseline{Features: []string{"sse2"}, Generation: 7} // told before this scheduler was started
	st := s.stream()
	s.beat(st, a)
	if _, err := s.hosts.ClearBaseline(within(t), &schedulerv1.ClearBaselineRequest{}); err != nil {
		t.Fatal(err)
	}
	told, err := st.Recv()
	if err != nil || told.GetCpuBaseline() == nil || len(told.GetCpuBaseline().GetFeatures()) > 0 || told.GetCpuBaseline().GetGeneration() <= 7 {
		t.Errorf("the host is told %v, %v", told, err)
	}
}

func TestHostsAreListedInPages(t *testing.T) {
	s := newScheduler(t, started)
	var want []string
	for i := range 5 {
		s.beat(s.stream(), host(fmt.Sprint("h", i)))
		want = append(want, fmt.Sprint("h", i))
	}
	var got []string
	for q := (&schedulerv1.ListHostsRequest{PageSize: 2}); ; {
		page, err := s.hosts.ListHosts(within(t), q)
		if err != nil || len(page.GetHosts()) > 2 {
			t.Fatalf("%v, %v", page, err)
		}
		for _, h := range page.GetHosts() {
			got = append(got, h.GetId())
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the pages have %v, want %v", got, want)
	}
	for field, q := range map[string]*schedulerv1.ListHostsRequest{"page_size": {PageSize: 1001}, "page_token": {PageToken: "?"}} {
		_, err := s.hosts.ListHosts(within(t), q)
		if status.Code(err) != codes.InvalidArgument || apierr.Reason(err) != "INVALID_FIELD" || !strings.Contains(err.Error(), field) {
			t.Errorf("a wrong %s: %v", field, err)
		}
	}
}
