package chassis

import (
	"context"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/consul/consultest"
)

// secured is a configuration with mutual TLS.
func secured(c *consultest.Server, service string) Config {
	return Config{Service: service, Consul: fast(c), TLS: TLSConfig{Mode: TLSConsul}}
}

// calling makes a daemon that only calls, as a service.
func calling(t *testing.T, cfg Config, opts ...Option) *Daemon {
	t.Helper()
	d, err := New(cfg, append(opts, WithLogOutput(t.Output()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDaemonsKnowEachOtherByConsulsAuthority(t *testing.T) {
	c := consultest.Start(t)
	ok := func() *fakeHost { return &fakeHost{ping: func(context.Context) error { return nil }} }
	d, _ := start(t, secured(c, "covey-host"), ok(), WithHostID("a"), WithCallers(hostMethods(pingMethod, "covey-sandbox", "covey-host")))
	sandboxd := calling(t, secured(c, "covey-sandbox"))
	// Consul's health check passes although it has no certificate.
	watchHosts(t, sandboxd).until("host a passing its check over TLS", passing("covey-host-a"))

	if _, err := dialHosts(t, sandboxd).PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
		t.Errorf("a service that may call: %v", err)
	}
	if _, err := client(t, sandboxd, d).PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
		t.Errorf("by address: %v", err)
	}
	_, err := dialHosts(t, calling(t, secured(c, "covey-gateway"))).PingSandbox(within(t), &hostv1.PingSandboxRequest{})
	if status.Code(err) != codes.PermissionDenied || apierr.Reason(err) != "CALLER_NOT_ALLOWED" || !strings.Contains(err.Error(), "covey-gateway may not call covey.host.v1.HostService/PingSandbox of covey-host: covey-sandbox, covey-host may") {
		t.Errorf("a service that may not call: %v", err)
	}
	_, err = raw(t, d.Addr(), credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})).PingSandbox(within(t), &hostv1.PingSandboxRequest{})
	if status.Code(err) != codes.Unauthenticated || apierr.Reason(err) != "CALLER_UNKNOWN" {
		t.Errorf("a caller without certificate: %v", err)
	}
	if _, err := raw(t, d.Addr(), insecure.NewCredentials()).PingSandbox(within(t), &hostv1.PingSandboxRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a caller without TLS: %v", err)
	}
	if _, err := dialHosts(t, sandboxd).PauseSandbox(within(t), &hostv1.PauseSandboxRequest{}); apierr.Reason(err) != "CALLER_NOT_ALLOWED" {
		t.Errorf("a method of which another is the only caller: %v", err)
	}
	// The identities stay good while Consul is away.
	c.Stop()
	if _, err := client(t, sandboxd, d).PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
		t.Errorf("without Consul: %v", err)
	}
}

const pingMethod = hostv1.HostService_PingSandbox_FullMethodName

// hostMethods is a table that has nobody call a host's methods, but one.
func hostMethods(method string, callers ...string) caller.Table {
	t := caller.Table{}
	for _, m := range hostv1.HostService_ServiceDesc.Methods {
		t["/"+hostv1.HostService_ServiceDesc.ServiceName+"/"+m.MethodName] = nil
	}
	for _, s := range hostv1.HostService_ServiceDesc.Streams {
		t["/"+hostv1.HostService_ServiceDesc.ServiceName+"/"+s.StreamName] = nil
	}
	t[method] = callers
	return t
}

// Whose agent a host agent is stands in its certificate, and its name in Consul may be as long as it likes.
func TestAHostsCertificateNamesTheHost(t *testing.T) {
	c := consultest.Start(t)
	var who caller.Caller
	var mine, another error
	long := strings.Repeat("h", 63)
	d, _ := start(t, secured(c, "covey-host"), &fakeHost{ping: func(ctx context.Context) error {
		who, _ = caller.From(ctx)
		mine, another = caller.SpeaksFor(ctx, "host_id", long), caller.SpeaksFor(ctx, "host_id", "b")
		return nil
	}}, WithHostID("a"))
	if _, err := client(t, calling(t, secured(c, "covey-host"), WithHostID(long)), d).PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
		t.Fatal(err)
	}
	if want := (caller.Caller{Service: "covey-host", HostID: long}); who != want || mine != nil {
		t.Errorf("the caller is %+v, want %+v; of its own host it may speak: %v", who, want, mine)
	}
	if status.Code(another) != codes.PermissionDenied || apierr.Reason(another) != "CALLER_NOT_ALLOWED" || !strings.Contains(another.Error(), `host_id: must be the caller's own host`) {
		t.Errorf("in another's name: %v", another)
	}
}

func TestAMethodOfWhichNothingSaysWhoMayCallIsNotServed(t *testing.T) {
	table := hostMethods(pingMethod, "covey-sandbox")
	delete(table, hostv1.HostService_ReadConsole_FullMethodName)
	d := calling(t, Config{Service: "covey-host"}, WithCallers(table))
	hostv1.RegisterHostServiceServer(d.Server(), &fakeHost{})
	if err := d.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no row says who may call "+hostv1.HostService_ReadConsole_FullMethodName) {
		t.Errorf("it serves, and ends with: %v", err)
	}
}

// raw calls without the mesh's identity.
func raw(t *testing.T, addr string, creds credentials.TransportCredentials) hostv1.HostServiceClient {
	t.Helper()
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return hostv1.NewHostServiceClient(c)
}

func TestACallerDoesNotSpeakToAnImpostor(t *testing.T) {
	c := consultest.Start(t)
	called := false
	// It has an identity of the mesh, but of another service, and listens where a host is believed to be.
	impostor, _ := start(t, secured(c, "covey-snapshot"), &fakeHost{ping: func(context.Context) error { called = true; return nil }})
	plain, _ := start(t, Config{Service: "covey-host"}, &fakeHost{ping: func(context.Context) error { called = true; return nil }})
	other := consultest.Start(t)
	foreign, _ := start(t, secured(other, "covey-host"), &fakeHost{ping: func(context.Context) error { called = true; return nil }})
	from := calling(t, secured(c, "covey-sandbox"))
	for _, test := range []struct {
		d    *Daemon
		what string
	}{{impostor, "the server is covey-snapshot, not covey-host"}, {plain, "first record does not look like a TLS handshake"}, {foreign, "unknown authority"}} {
		ctx := within(t)
		_, err := client(t, from, test.d).PingSandbox(ctx, &hostv1.PingSandboxRequest{})
		for status.Code(err) == codes.Unavailable && !strings.Contains(err.Error(), test.what) && ctx.Err() == nil { // A busy machine may be too slow for a handshake.
			_, err = client(t, from, test.d).PingSandbox(ctx, &hostv1.PingSandboxRequest{})
		}
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), test.what) {
			t.Errorf("want an error with %q, got %v", test.what, err)
		}
	}
	if called {
		t.Error("a call reached an impostor")
	}
}

func TestThePublicPortAsksForNoIdentityOfTheMesh(t *testing.T) {
	c := consultest.Start(t)
	host, _ := start(t, secured(c, "covey-host"), &fakeHost{ping: func(context.Context) error { return nil }})
	f := &fakeHost{}
	edge, _ := start(t, secured(c, "covey-gateway"), f, WithPublic())
	onward := client(t, edge, host)
	f.ping = func(ctx context.Context) error {
		_, err := onward.PingSandbox(ctx, &hostv1.PingSandboxRequest{})
		return err
	}
	if _, err := raw(t, edge.Addr(), insecure.NewCredentials()).PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
		t.Error(err)
	}
}

func TestCallsWaitForTheFirstIdentity(t *testing.T) {
	c := consultest.Start(t)
	c.Stop()
	d, _ := start(t, secured(c, "covey-host"), &fakeHost{ping: func(context.Context) error { return nil }})
	from := calling(t, secured(c, "covey-sandbox"))
	answer := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	go func() {
		_, err := client(t, from, d).PingSandbox(ctx, &hostv1.PingSandboxRequest{}, grpc.WaitForReady(true))
		answer <- err
	}()
	c.Restart(t)
	if err := <-answer; err != nil {
		t.Error(err)
	}
}
