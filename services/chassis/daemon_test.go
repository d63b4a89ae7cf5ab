package chassis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// fakeHost is a service whose behaviour each test chooses.
type fakeHost struct {
	hostv1.UnimplementedHostServiceServer
	ping  func(context.Context) error
	watch func(grpc.ServerStreamingServer[hostv1.WatchSandboxesResponse]) error
}

func (f *fakeHost) PingSandbox(ctx context.Context, _ *hostv1.PingSandboxRequest) (*hostv1.PingSandboxResponse, error) {
	return &hostv1.PingSandboxResponse{}, f.ping(ctx)
}

func (f *fakeHost) WatchSandboxes(_ *hostv1.WatchSandboxesRequest, s grpc.ServerStreamingServer[hostv1.WatchSandboxesResponse]) error {
	return f.watch(s)
}

// logs is a log that tests read while the daemon writes.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a daemon with a fake service until stop or the test's end.
func start(t *testing.T, cfg Config, f *fakeHost, opts ...Option) (d *Daemon, stop func()) {
	t.Helper()
	if cfg.Service == "" {
		cfg.Service = "covey-host"
	}
	d, err := New(cfg, append([]Option{WithLogOutput(t.Output())}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	hostv1.RegisterHostServiceServer(d.Server(), f)
	if err := d.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return d, stop
}

// onlyCalls is a daemon that only calls.
func onlyCalls(t *testing.T, cfg Config) *Daemon {
	t.Helper()
	cfg.Service = "covey-gateway"
	d, err := New(cfg, WithLogOutput(t.Output()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func client(t *testing.T, from *Daemon, to *Daemon) hostv1.HostServiceClient {
	t.Helper()
	c, err := from.DialAddr(to.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return hostv1.NewHostServiceClient(c)
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestErrorsReachCallersAsPromised(t *testing.T) {
	f, out := &fakeHost{}, &logs{}
	d, _ := start(t, Config{}, f, WithLogOutput(out))
	c := client(t, onlyCalls(t, Config{}), d)
	for name, test := range map[string]struct {
		err     error
		panics  bool
		code    codes.Code
		reason  string
		message string
		logged  string
	}{
		"an API error is passed":        {err: apierr.E(codes.NotFound, "NO_SUCH", "no such thing"), code: codes.NotFound, reason: "NO_SUCH", message: "no such thing"},
		"also if it is wrapped":         {err: fmt.Errorf("secret: %w", apierr.Field("vcpus", "must be 1")), code: codes.InvalidArgument, reason: "INVALID_FIELD", message: "vcpus: must be 1"},
		"others are internal":           {err: errors.New("password is hunter2"), code: codes.Internal, reason: "INTERNAL", message: "request id req_1", logged: "hunter2"},
		"so are bare internal statuses": {err: status.Error(codes.Internal, "password is hunter3"), code: codes.Internal, reason: "INTERNAL", message: "req_1", logged: "hunter3"},
		"so are panics":                 {panics: true, code: codes.Internal, reason: "INTERNAL", message: "req_1", logged: "daemon_test.go"},
		"a deadline stays one":          {err: fmt.Errorf("select: %w", context.DeadlineExceeded), code: codes.DeadlineExceeded, reason: "DEADLINE_EXCEEDED"},
		"a cancellation stays one":      {err: context.Canceled, code: codes.Canceled, reason: "CANCELLED"},
		"bare statuses get a reason":    {err: status.Error(codes.Unimplemented, "not here"), code: codes.Unimplemented, reason: "UNIMPLEMENTED", message: "not here"},
		"unreachable peers stay hidden": {err: status.Error(codes.Unavailable, "dial 10.0.0.7"), code: codes.Unavailable, reason: "UNAVAILABLE", message: "cannot be reached", logged: "10.0.0.7"},
	} {
		t.Run(name, func(t *testing.T) {
			f.ping = func(context.Context) error {
				if test.panics {
					panic("boom")
				}
				return test.err
			}
			_, err := c.PingSandbox(tenant.WithRequestID(within(t), "req_1"), &hostv1.PingSandboxRequest{})
			if status.Code(err) != test.code || apierr.Reason(err) != test.reason || !strings.Contains(err.Error(), test.message) {
				t.Errorf("got %v, reason %q; want %v, %q, %q", err, apierr.Reason(err), test.code, test.reason, test.message)
			}
			if strings.Contains(err.Error(), "hunter") || strings.Contains(err.Error(), "10.0.0.7") || strings.Contains(err.Error(), "secret") {
				t.Errorf("the caller sees what is for the log alone: %v", err)
			}
			if !strings.Contains(out.String(), test.logged) {
				t.Errorf("the log lacks %q:\n%s", test.logged, out)
			}
		})
	}
}

func TestTenantAndRequestIDGoFromDaemonToDaemon(t *testing.T) {
	var gotTenant, gotID string
	last := &fakeHost{ping: func(ctx context.Context) error {
		gotTenant, gotID = tenant.From(ctx), tenant.RequestID(ctx)
		return nil
	}}
	d, _ := start(t, Config{}, last)
	first := &fakeHost{}
	d2, _ := start(t, Config{}, first)
	onward := client(t, d2, d)
	first.ping = func(ctx context.Context) error {
		_, err := onward.PingSandbox(ctx, &hostv1.PingSandboxRequest{})
		return err
	}
	c := client(t, onlyCalls(t, Config{}), d2)
	ctx := metadata.AppendToOutgoingContext(within(t), tenant.Key, "acme", tenant.RequestIDKey, "req_x")
	if _, err := c.PingSandbox(ctx, &hostv1.PingSandboxRequest{}); err != nil || gotTenant != "acme" || gotID != "req_x" {
		t.Errorf("got %q, %q, %v", gotTenant, gotID, err)
	}
	var trailer metadata.MD
	if _, err := c.PingSandbox(within(t), &hostv1.PingSandboxRequest{}, grpc.Trailer(&trailer)); err != nil || !strings.HasPrefix(gotID, "req_") || gotID == "req_x" {
		t.Errorf("a call without request id gets %q, %v", gotID, err)
	}
	if h := trailer.Get(tenant.RequestIDKey); len(h) != 1 || h[0] != gotID {
		t.Errorf("the caller is told %v, the call was %q", h, gotID)
	}
}

func TestPublicDaemonDoesNotBelieveTheTenant(t *testing.T) {
	got := ""
	d, _ := start(t, Config{}, &fakeHost{ping: func(ctx context.Context) error { got = tenant.From(ctx); return nil }}, WithPublic())
	c := client(t, onlyCalls(t, Config{}), d)
	if _, err := c.PingSandbox(metadata.AppendToOutgoingContext(within(t), tenant.Key, "acme"), &hostv1.PingSandboxRequest{}); err != nil || got != tenant.Default {
		t.Errorf("got tenant %q, %v", got, err)
	}
}

func TestAuthIsAskedAboutEveryCallButHealth(t *testing.T) {
	f := &fakeHost{
		ping: func(ctx context.Context) error {
			if tenant.From(ctx) != "acme" {
				return errors.New("the auth hook's context did not arrive")
			}
			return nil
		},
		watch: func(grpc.ServerStreamingServer[hostv1.WatchSandboxesResponse]) error { return nil },
	}
	d, _ := start(t, Config{}, f, WithAuth(func(ctx context.Context, method string) (context.Context, error) {
		if method == hostv1.HostService_PingSandbox_FullMethodName {
			return tenant.With(ctx, "acme"), nil
		}
		return nil, apierr.E(codes.PermissionDenied, "NO", "not "+method)
	}))
	from := onlyCalls(t, Config{})
	c := client(t, from, d)
	if _, err := c.PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
		t.Error(err)
	}
	s, err := c.WatchSandboxes(within(t), &hostv1.WatchSandboxesRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stream gets %v", err)
	}
	conn, err := from.DialAddr(d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	r, err := healthpb.NewHealthClient(conn).Check(within(t), &healthpb.HealthCheckRequest{})
	if err != nil || r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", r, err)
	}
}

func TestUnaryCallsWithoutDeadlineGetOne(t *testing.T) {
	d, _ := start(t, Config{Deadline: 30 * time.Millisecond}, &fakeHost{ping: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	_, err := client(t, onlyCalls(t, Config{}), d).PingSandbox(context.WithoutCancel(within(t)), &hostv1.PingSandboxRequest{})
	if status.Code(err) != codes.DeadlineExceeded || apierr.Reason(err) != "DEADLINE_EXCEEDED" {
		t.Errorf("got %v", err)
	}
}

func TestCallsUnderWayEndBeforeTheDaemonDoes(t *testing.T) {
	entered, finish := make(chan struct{}), make(chan struct{})
	deferred := false
	f := &fakeHost{
		ping: func(context.Context) error {
			close(entered)
			<-finish
			return nil
		},
	}
	d, stop := start(t, Config{Drain: time.Minute}, f)
	f.watch = func(grpc.ServerStreamingServer[hostv1.WatchSandboxesResponse]) error {
		<-d.Draining()
		close(finish)
		return nil
	}
	d.Defer(func() error {
		select {
		case <-finish:
			deferred = true
		default:
			t.Error("what was deferred ran before the calls had ended")
		}
		return nil
	})
	c := client(t, onlyCalls(t, Config{}), d)
	if _, err := c.WatchSandboxes(within(t), &hostv1.WatchSandboxesRequest{}); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := c.PingSandbox(context.Background(), &hostv1.PingSandboxRequest{})
		answer <- err
	}()
	<-entered
	stop()
	if err := <-answer; err != nil {
		t.Errorf("the call under way got %v", err)
	}
	if !deferred {
		t.Error("what was deferred did not run")
	}
}

func TestEndlessStreamsEndAtOnce(t *testing.T) {
	f := &fakeHost{watch: func(s grpc.ServerStreamingServer[hostv1.WatchSandboxesResponse]) error {
		if err := s.Send(&hostv1.WatchSandboxesResponse{}); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}}
	d, stop := start(t, Config{Drain: time.Minute}, f, WithEndless(hostv1.HostService_WatchSandboxes_FullMethodName))
	s, err := client(t, onlyCalls(t, Config{}), d).WatchSandboxes(within(t), &hostv1.WatchSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	stop()
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable || apierr.Reason(err) != "SHUTTING_DOWN" {
		t.Errorf("got %v", err)
	}
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("the daemon waited %s for a stream that never ends", d)
	}
}

func TestCallsThatDoNotEndAreCutOff(t *testing.T) {
	entered := make(chan struct{})
	d, stop := start(t, Config{Drain: 20 * time.Millisecond}, &fakeHost{ping: func(ctx context.Context) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}})
	c := client(t, onlyCalls(t, Config{}), d)
	answer := make(chan error, 1)
	go func() {
		_, err := c.PingSandbox(context.Background(), &hostv1.PingSandboxRequest{})
		answer <- err
	}()
	<-entered
	stop()
	if err := <-answer; status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestMetricsPortTellsHealthAndCounts(t *testing.T) {
	d, _ := start(t, Config{MetricsListen: "127.0.0.1:0"}, &fakeHost{ping: func(context.Context) error { return nil }})
	if _, err := client(t, onlyCalls(t, Config{}), d).PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
		t.Fatal(err)
	}
	base := "http://" + d.MetricsAddr()
	// The caller has its answer before the call is counted.
	for ctx := within(t); ; {
		code, body := get(t, base+"/metrics")
		if code == 200 && (strings.Contains(body, `rpc_method="covey.host.v1.HostService/PingSandbox"`) || strings.Contains(body, `rpc_method="PingSandbox"`)) {
			break
		}
		if code != 200 || ctx.Err() != nil {
			t.Fatalf("/metrics: %d\n%s", code, body)
		}
	}
	for _, ok := range []bool{true, false, true} {
		d.SetServing(ok)
		want := http.StatusOK
		if !ok {
			want = http.StatusServiceUnavailable
		}
		if code, _ := get(t, base+"/readyz"); code != want {
			t.Errorf("serving %v: /readyz answers %d", ok, code)
		}
		if code, _ := get(t, base+"/healthz"); code != http.StatusOK {
			t.Errorf("serving %v: /healthz answers %d", ok, code)
		}
	}
}

func TestHTTPAndGRPCShareAPort(t *testing.T) {
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello ", r.URL.Path) })
	d, stop := start(t, Config{}, &fakeHost{ping: func(context.Context) error { return nil }}, WithHTTP(hello))
	if _, err := client(t, onlyCalls(t, Config{}), d).PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
		t.Error(err)
	}
	if code, body := get(t, "http://"+d.Addr()+"/x"); code != 200 || body != "hello /x" {
		t.Errorf("got %d %q", code, body)
	}
	// A connection that says nothing does not keep the daemon from ending.
	silent, err := net.Dial("tcp", d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	stop()
	if _, err := net.Dial("tcp", d.Addr()); err == nil {
		t.Error("the port is still open")
	}
}

func TestServicesAreFoundInPeersWithoutConsul(t *testing.T) {
	d, _ := start(t, Config{}, &fakeHost{ping: func(context.Context) error { return nil }})
	from := onlyCalls(t, Config{Peers: map[string][]string{"covey-host": {d.Addr()}}})
	conn, err := from.Dial("covey-host")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hostv1.NewHostServiceClient(conn).PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := from.Dial("covey-scheduler"); err == nil || !strings.Contains(err.Error(), "peers") {
		t.Errorf("got %v", err)
	}
}

func TestADaemonThatNeverRanIsReleased(t *testing.T) {
	d, err := New(Config{Service: "covey-host", Consul: ConsulConfig{Address: "127.0.0.1:1"}}, WithLogOutput(t.Output()))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Listen(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Dial("covey-scheduler"); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := d.Run(t.Context()); err == nil {
		t.Error("a closed daemon runs")
	}
}
