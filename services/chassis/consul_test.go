package chassis

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	"github.com/coveyhq/covey/services/chassis/consul"
	"github.com/coveyhq/covey/services/chassis/consul/consultest"
)

// fast is how these tests stand in Consul.
func fast(c *consultest.Server) ConsulConfig {
	return ConsulConfig{Address: c.Addr, CheckInterval: 200 * time.Millisecond}
}

// named answers with its name in the metadata of the call.
func named(seen func(string), name string) *fakeHost {
	return &fakeHost{ping: func(context.Context) error { seen(name); return nil }}
}

// follow collects what a watch says; next waits for a state.
type follow struct {
	t      *testing.T
	states chan []consul.Instance
}

func watchHosts(t *testing.T, d *Daemon) *follow {
	f := &follow{t, make(chan []consul.Instance, 64)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.Watch(ctx, "covey-host", func(list []consul.Instance, err error) {
			if err == nil {
				f.states <- list
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

func (f *follow) until(what string, ok func([]consul.Instance) bool) {
	f.t.Helper()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	var last []consul.Instance
	for {
		select {
		case last = <-f.states:
			if ok(last) {
				return
			}
		case <-limit.C:
			f.t.Fatalf("never seen: %s; last was %+v", what, last)
		}
	}
}

func passing(ids ...string) func([]consul.Instance) bool {
	return func(list []consul.Instance) bool {
		var got []string
		for _, i := range list {
			if i.Passing {
				got = append(got, i.ID)
			}
		}
		return slices.Equal(got, ids)
	}
}

func dialHosts(t *testing.T, d *Daemon) hostv1.HostServiceClient {
	t.Helper()
	c, err := d.Dial("covey-host")
	if err != nil {
		t.Fatal(err)
	}
	return hostv1.NewHostServiceClient(c)
}

// ping calls until seen has got all names.
func pingUntil(t *testing.T, c hostv1.HostServiceClient, got func() bool) {
	t.Helper()
	ctx := within(t)
	for !got() {
		if _, err := c.PingSandbox(ctx, &hostv1.PingSandboxRequest{}, grpc.WaitForReady(true)); err != nil && status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
		if ctx.Err() != nil {
			t.Fatal("not all instances were called")
		}
	}
}

func TestDaemonsStandInConsulWhileTheyServe(t *testing.T) {
	c := consultest.Start(t)
	from := onlyCalls(t, Config{Consul: fast(c)})
	f := watchHosts(t, from)
	d, stop := start(t, Config{Consul: fast(c), MetricsListen: "127.0.0.1:0"}, &fakeHost{}, WithHostID("a"))
	f.until("host a registered", func(list []consul.Instance) bool {
		return len(list) == 1 && list[0].Passing && list[0].ID == "covey-host-a" && list[0].Meta["host_id"] == "a" &&
			list[0].Meta["metrics"] == d.MetricsAddr() && list[0].Address == d.Addr()
	})
	d.SetServing(false)
	f.until("its check failing", passing())
	d.SetServing(true)
	f.until("its check passing again", passing("covey-host-a"))
	stop()
	f.until("host a deregistered", func(list []consul.Instance) bool { return len(list) == 0 })
}

func TestCallsGoToAllPassingInstances(t *testing.T) {
	c := consultest.Start(t)
	seen := map[string]bool{}
	names := make(chan string, 1024)
	d := onlyCalls(t, Config{Consul: fast(c)})
	conn, err := d.Dial("covey-host")
	if err != nil {
		t.Fatal(err)
	}
	client := hostv1.NewHostServiceClient(conn)
	_, err = client.PingSandbox(within(t), &hostv1.PingSandboxRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no instance of covey-host passes") {
		t.Errorf("without instances: %v", err)
	}
	_, stopA := start(t, Config{Consul: fast(c)}, named(func(n string) { names <- n }, "a"), WithHostID("a"))
	start(t, Config{Consul: fast(c)}, named(func(n string) { names <- n }, "b"), WithHostID("b"))
	call := func(want ...string) {
		t.Helper()
		clear(seen)
		pingUntil(t, client, func() bool {
			for len(names) > 0 {
				seen[<-names] = true
			}
			ok := true
			for _, w := range want {
				ok = ok && seen[w]
			}
			return ok
		})
	}
	call("a", "b")
	stopA()
	call("b")
	start(t, Config{Consul: fast(c)}, named(func(n string) { names <- n }, "c"), WithHostID("c"))
	call("b", "c")
}

func TestTheMeshOutlivesConsul(t *testing.T) {
	c := consultest.Start(t)
	from := onlyCalls(t, Config{Consul: fast(c)})
	f := watchHosts(t, from)
	start(t, Config{Consul: fast(c)}, &fakeHost{ping: func(context.Context) error { return nil }}, WithHostID("a"))
	f.until("host a", passing("covey-host-a"))
	client := dialHosts(t, from)
	ping := func(when string) {
		t.Helper()
		if _, err := client.PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	ping("with Consul")
	c.Stop()
	ping("without Consul")
	_, stopLate := start(t, Config{Consul: fast(c)}, &fakeHost{ping: func(context.Context) error { return nil }}, WithHostID("late"))
	c.Restart(t)
	ping("with a Consul that knows nothing")
	f.until("both hosts, one of which started while Consul was away", passing("covey-host-a", "covey-host-late"))
	stopLate()
	f.until("host a alone", passing("covey-host-a"))
	ping("at last")
}

func TestADaemonStartsBeforeConsulDoes(t *testing.T) {
	c := consultest.Start(t)
	c.Stop()
	start(t, Config{Consul: fast(c)}, &fakeHost{}, WithHostID("a"))
	from := onlyCalls(t, Config{Consul: fast(c)})
	_, err := dialHosts(t, from).PingSandbox(within(t), &hostv1.PingSandboxRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "instances of covey-host are not known") {
		t.Errorf("without Consul: %v", err)
	}
	c.Restart(t)
	watchHosts(t, from).until("host a", passing("covey-host-a"))
}
