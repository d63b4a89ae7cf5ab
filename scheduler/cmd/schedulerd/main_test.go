package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/consul/consultest"
	"github.com/coveyhq/covey/services/chassis/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }

// start runs the whole program until stop or the test's end.
func start(t *testing.T, consul string, chassis ...string) (addr string, stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "schedulerd.yaml")
	conf := fmt.Sprintf("chassis: {consul: {address: %q, check_interval: 200ms}, log: {level: warn}%s}\ntiming: {silence: 3s, warm_up: 30s, reservation: 10m}\n", consul, strings.Join(append([]string{""}, chassis...), ", "))
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMain(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.daemon.Listen(); err != nil {
		t.Fatal(err)
	}
	return m.daemon.Addr(), running(t, m.run)
}

// running runs something until stop or the test's end.
func running(t *testing.T, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// startHost runs what the scheduler sees of a host agent: it stands in Consul and beats to every scheduler.
func startHost(t *testing.T, consul, id string) (d *chassis.Daemon, stop func()) {
	t.Helper()
	d, err := chassis.New(chassis.Config{
		Service: "covey-host", Consul: chassis.ConsulConfig{Address: consul, CheckInterval: 200 * time.Millisecond}, Log: chassis.LogConfig{Level: "warn"},
	}, chassis.WithHostID(id))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Listen(); err != nil {
		t.Fatal(err)
	}
	beating, silence := context.WithCancel(context.Background())
	var beats sync.WaitGroup
	beats.Go(func() {
		d.EachInstance(beating, "covey-scheduler", func(ctx context.Context, c *grpc.ClientConn) { beat(ctx, c, id, d.Addr()) })
	})
	d.Defer(func() error {
		silence()
		beats.Wait()
		return nil
	})
	return d, running(t, d.Run)
}

func beat(ctx context.Context, c *grpc.ClientConn, id, addr string) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		st, err := schedulerv1.NewSchedulerServiceClient(c).Heartbeat(ctx, grpc.WaitForReady(true))
		for err == nil {
			err = st.Send(&schedulerv1.HeartbeatRequest{Host: &schedulerv1.Host{
				Id: id, Address: addr, State: schedulerv1.HostState_HOST_STATE_READY, Drivers: []string{"qemu/tcg"},
				Capacity:    &schedulerv1.Resources{Vcpus: 8, MemoryMb: 8192, DiskMb: 8192, Slots: 8},
				CpuFeatures: strings.Fields("apic cmov cx8 fpu fxsr lm mmx msr nx pae pge pse sse sse2 syscall tsc"),
			}})
			if err == nil {
				_, err = st.Recv()
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}
}

// view is what one scheduler knows.
type view struct {
	t     *testing.T
	place schedulerv1.SchedulerServiceClient
	hosts schedulerv1.HostsServiceClient
}

func look(t *testing.T, addr string) view {
	t.Helper()
	d, err := chassis.New(chassis.Config{Service: "covey-test", Peers: map[string][]string{"covey-scheduler": {addr}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	c, err := d.Dial("covey-scheduler", grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	return view{t, schedulerv1.NewSchedulerServiceClient(c), schedulerv1.NewHostsServiceClient(c)}
}

// until waits until the hosts are as described, like "a=READY b=LOST".
func (v view) until(want string) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := v.hosts.ListHosts(ctx, &schedulerv1.ListHostsRequest{})
		if err != nil {
			v.t.Fatalf("waiting for %q: %v", want, err)
		}
		var got []string
		for _, h := range list.GetHosts() {
			got = append(got, h.GetId()+"="+strings.TrimPrefix(h.GetState().String(), "HOST_STATE_"))
		}
		if strings.Join(got, " ") == want {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			v.t.Fatalf("waiting for %q: hosts are %v", want, got)
		}
	}
}

func (v view) mustPlace(sandbox, on string) {
	v.t.Helper()
	if p := v.placed(&schedulerv1.PlaceRequest{SandboxId: sandbox, Resources: &schedulerv1.Resources{Vcpus: 1, MemoryMb: 512, DiskMb: 512, Slots: 1}}); p.GetHostId() != on {
		v.t.Errorf("%s is placed on %q, want %q", sandbox, p.GetHostId(), on)
	}
}

// placed places a sandbox. A host on a busy machine may be silent for long enough to count as lost, and beats again.
func (v view) placed(q *schedulerv1.PlaceRequest) *schedulerv1.PlaceResponse {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		p, err := v.place.Place(ctx, q)
		if err == nil {
			return p
		}
		if status.Code(err) != codes.ResourceExhausted || ctx.Err() != nil {
			v.t.Fatal(err)
		}
		<-tick.C
	}
}

func TestSchedulersShareHostsAndCordons(t *testing.T) {
	c := consultest.Start(t)
	addr1, _ := start(t, c.Addr)
	addr2, stop2 := start(t, c.Addr)
	first, second := look(t, addr1), look(t, addr2)
	startHost(t, c.Addr, "a")
	_, stopB := startHost(t, c.Addr, "b")
	first.until("a=READY b=READY")
	second.until("a=READY b=READY")

	if _, err := first.hosts.CordonHost(t.Context(), &schedulerv1.CordonHostRequest{HostId: "b", Cordoned: new(true)}); err != nil {
		t.Fatal(err)
	}
	first.until("a=READY b=CORDONED")
	second.until("a=READY b=CORDONED")
	second.mustPlace("sb_1", "a")

	// A scheduler that starts knows no host and still answers right.
	stop2()
	addr3, _ := start(t, c.Addr)
	third := look(t, addr3)
	third.mustPlace("sb_2", "a")
	third.until("a=READY b=CORDONED")

	stopB()
	first.until("a=READY b=LOST")
	if _, err := third.hosts.CordonHost(t.Context(), &schedulerv1.CordonHostRequest{HostId: "b", Cordoned: new(false)}); err != nil {
		t.Fatal(err)
	}
	startHost(t, c.Addr, "b")
	first.until("a=READY b=READY")
}

// Who gives room back asks any scheduler, not the one that had reserved it.
func TestRoomIsGivenBackWhicheverSchedulerIsTold(t *testing.T) {
	c := consultest.Start(t)
	addr1, _ := start(t, c.Addr)
	addr2, _ := start(t, c.Addr)
	first, second := look(t, addr1), look(t, addr2)
	startHost(t, c.Addr, "a")
	first.until("a=READY")
	second.until("a=READY")
	all := &schedulerv1.PlaceRequest{SandboxId: "sb_1", Resources: &schedulerv1.Resources{Vcpus: 8, MemoryMb: 8192, DiskMb: 8192, Slots: 1}}
	placed := first.placed(all)
	another := proto.CloneOf(all)
	another.SandboxId = "sb_2"
	// By itself the reservation would end after 10 minutes. The schedulers may not know each other at once.
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		if _, err := second.place.ReleaseReservation(t.Context(), &schedulerv1.ReleaseReservationRequest{ReservationId: placed.GetReservationId()}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := first.place.Place(ctx, another)
		cancel()
		if err == nil {
			return
		}
	}
	t.Error("what another scheduler was told to give back is held still")
}

func TestSchedulersShareBaselinesAndOneThatStartsKnowsThem(t *testing.T) {
	c := consultest.Start(t)
	addr1, _ := start(t, c.Addr)
	first := look(t, addr1)
	startHost(t, c.Addr, "a")
	first.until("a=READY")
	set, err := first.hosts.SetBaseline(t.Context(), &schedulerv1.SetBaselineRequest{Common: true})
	if err != nil {
		t.Fatal(err)
	}
	addr2, _ := start(t, c.Addr)
	second := look(t, addr2)
	second.until("a=READY")
	second.untilBaseline(set.GetBaseline().GetGeneration())
	if _, err := second.hosts.ClearBaseline(t.Context(), &schedulerv1.ClearBaselineRequest{}); err != nil {
		t.Fatal(err)
	}
	first.untilBaseline(0)
}

// untilBaseline waits until the baseline of all hosts is of a generation; 0: until there is none.
func (v view) untilBaseline(generation int64) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		got, err := v.hosts.GetBaseline(ctx, &schedulerv1.GetBaselineRequest{})
		if err != nil {
			v.t.Fatal(err)
		}
		if got.GetBaseline().GetGeneration() == generation {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			v.t.Fatalf("waiting for generation %d: the baseline is %v", generation, got.GetBaseline())
		}
	}
}

func TestAHostThatFailsItsCheckIsLostWhileItBeats(t *testing.T) {
	c := consultest.Start(t)
	addr, _ := start(t, c.Addr)
	v := look(t, addr)
	a, _ := startHost(t, c.Addr, "a")
	v.until("a=READY")
	a.SetServing(false)
	v.until("a=LOST")
	a.SetServing(true)
	v.until("a=READY")
	// That Consul is away loses no host.
	c.Stop()
	v.mustPlace("sb_1", "a")
	c.Restart(t)
	v.until("a=READY")
	v.mustPlace("sb_2", "a")
}

func TestEveryMethodHasARowThatSaysWhoMayCall(t *testing.T) {
	m, err := newMain(Config{Chassis: chassis.Config{Service: caller.Scheduler}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.daemon.Close()
	if lacks := callers.Lacks(m.daemon.Server().GetServiceInfo()); len(lacks) > 0 {
		t.Errorf("no row for %s", lacks)
	}
}

// TestAHostBeatsForItselfAndDoesNotPlace is about a host that was taken over: it has an identity of the mesh, for its own host.
func TestAHostBeatsForItselfAndDoesNotPlace(t *testing.T) {
	c := consultest.Start(t)
	addr, _ := start(t, c.Addr, "tls: {mode: consul}")
	as := func(service string, opts ...chassis.Option) *grpc.ClientConn {
		d, err := chassis.New(chassis.Config{
			Service: service, Consul: chassis.ConsulConfig{Address: c.Addr}, TLS: chassis.TLSConfig{Mode: chassis.TLSConsul}, Log: chassis.LogConfig{Level: "warn"},
		}, opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		conn, err := d.Dial(caller.Scheduler, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	host := schedulerv1.NewSchedulerServiceClient(as(caller.Host, chassis.WithHostID("a")))
	beat := func(id string) error {
		st, err := host.Heartbeat(ctx)
		if err != nil {
			return err
		}
		defer st.CloseSend()
		err = st.Send(&schedulerv1.HeartbeatRequest{Host: &schedulerv1.Host{Id: id, Address: addr, Capacity: &schedulerv1.Resources{Vcpus: 8, MemoryMb: 8192, DiskMb: 8192, Slots: 8}}})
		if err == nil {
			_, err = st.Recv()
		}
		return err
	}
	place := &schedulerv1.PlaceRequest{SandboxId: "sb_1", Resources: &schedulerv1.Resources{Vcpus: 1, MemoryMb: 512, DiskMb: 512, Slots: 1}}
	_, places := host.Place(ctx, place)
	_, releases := host.ReleaseReservation(ctx, &schedulerv1.ReleaseReservationRequest{ReservationId: "res_1"})
	for what, err := range map[string]error{"places": places, "gives room back": releases, "beats for another": beat("b")} {
		if status.Code(err) != codes.PermissionDenied || apierr.Reason(err) != "CALLER_NOT_ALLOWED" || !strings.Contains(err.Error(), "covey-host-a") {
			t.Errorf("host a %s: %v", what, err)
		}
	}
	if err := beat("a"); err != nil {
		t.Errorf("host a beats: %v", err)
	}
	if _, err := schedulerv1.NewSchedulerServiceClient(as(caller.Sandbox)).Place(ctx, place); err != nil {
		t.Errorf("sandboxd places: %v", err)
	}
}
