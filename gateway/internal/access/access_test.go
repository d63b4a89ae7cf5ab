package access

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/tenant"
)

func TestEveryMethodNeedsTheScopeOfWhatItDoes(t *testing.T) {
	for method, want := range map[string]string{
		"/covey.sandbox.v1.SandboxService/GetSandbox": Read, "/covey.sandbox.v1.SandboxService/WatchSandboxes": Read,
		"/covey.sandbox.v1.SandboxService/CreateSandbox": Write, "/covey.guest.v1.ProcessService/Exec": Write,
		"/covey.guest.v1.FileService/ReadFile": Read, "/covey.guest.v1.FileService/WriteFile": Write, "/covey.host.v1.HostService/ReadConsole": Read,
		"/covey.snapshot.v1.SnapshotService/ExplainSnapshot": Read, "/covey.snapshot.v1.SnapshotService/DeleteSnapshot": Write,
		"/covey.scheduler.v1.HostsService/ListHosts": Admin, "/covey.sandbox.v1.KeyService/ListKeys": Admin,
		"/covey.sandbox.v1.OperationsService/CanRestoreSnapshot": Admin, "nonsense": Write,
		"/covey.sandbox.v1.TenantService/GetUsage": Read, "/covey.sandbox.v1.TenantService/SetQuota": Admin, "/covey.sandbox.v1.TenantService/ListAuditEvents": Admin,
	} {
		if got := ScopeOf(method); got != want {
			t.Errorf("%s needs %s, want %s", method, got, want)
		}
	}
	for _, c := range []struct {
		has    []string
		needed string
		may    bool
	}{
		{nil, Read, false}, {[]string{Read}, Read, true}, {[]string{Read}, Write, false}, {[]string{Write}, Read, true}, {[]string{Write}, Admin, false},
		{[]string{Admin}, Write, true}, {[]string{Admin}, Admin, true},
	} {
		if may(c.has, c.needed) != c.may {
			t.Errorf("%v for %s: %v", c.has, c.needed, !c.may)
		}
	}
}

// service is a fake of the one that owns the keys, with a clock.
type service struct {
	now   time.Time
	asked int
	err   error
}

func (s *service) keys() *Keys {
	k := New(func(context.Context, string) (Caller, error) {
		s.asked++
		return Caller{Tenant: "acme", KeyID: "key_1", Scopes: []string{Read}}, s.err
	})
	k.now = func() time.Time { return s.now }
	return k
}

func TestAnAnswerAboutAKeyIsBelievedForTwoSecondsAndForThirtyWhereNobodyCanBeAsked(t *testing.T) {
	s := &service{now: time.Unix(1000, 0)}
	k := s.keys()
	for _, step := range []struct {
		after time.Duration
		err   error
		code  codes.Code
		asked int
	}{
		{0, nil, codes.OK, 1},
		{time.Second, nil, codes.OK, 1},
		{2 * time.Second, nil, codes.OK, 2},
		{10 * time.Second, status.Error(codes.Unavailable, "gone"), codes.OK, 3},
		{40 * time.Second, status.Error(codes.Unavailable, "gone"), codes.Unavailable, 4},
		{41 * time.Second, nil, codes.OK, 5},
		{44 * time.Second, status.Error(codes.Unauthenticated, "revoked"), codes.Unauthenticated, 6},
		{45 * time.Second, nil, codes.Unauthenticated, 6},
		{47 * time.Second, status.Error(codes.Unavailable, "gone"), codes.Unavailable, 7},
	} {
		s.now, s.err = time.Unix(1000, 0).Add(step.after), step.err
		_, err := k.Identify(t.Context(), "cvy_x", Attempt{})
		if status.Code(err) != step.code || s.asked != step.asked {
			t.Fatalf("after %s: %v, asked %d times; want %s, %d", step.after, err, s.asked, step.code, step.asked)
		}
	}
}

// Anyone can send what is no key, as often as it is let.
func TestWhatIsNoKeyTakesNoPlaceFromKeys(t *testing.T) {
	asked := map[string]int{}
	k := New(func(_ context.Context, secret string) (Caller, error) {
		asked[secret]++
		if strings.HasPrefix(secret, "cvy_good") {
			return Caller{Tenant: "acme", KeyID: secret}, nil
		}
		return Caller{}, status.Error(codes.Unauthenticated, "unknown")
	})
	now := time.Unix(1000, 0)
	k.now = func() time.Time { return now }
	look := func(secret string, want codes.Code) {
		if _, err := k.find(t.Context(), secret); status.Code(err) != want {
			t.Fatalf("%s: %v", secret, err)
		}
	}
	look("cvy_good", codes.OK)
	for i := range 3 * maxKeys {
		look(fmt.Sprint("cvy_bad", i), codes.Unauthenticated)
	}
	look("cvy_good", codes.OK)
	if asked["cvy_good"] != 1 || len(k.known) != 1 || len(k.unknown) > maxUnknown {
		t.Errorf("the key was asked about %d times; %d keys and %d others are kept", asked["cvy_good"], len(k.known), len(k.unknown))
	}
	look("cvy_bad0", codes.Unauthenticated)
	look("cvy_bad0", codes.Unauthenticated)
	if asked["cvy_bad0"] != 2 {
		t.Errorf("what is no key was asked about %d times", asked["cvy_bad0"])
	}
	// Of keys those go first that nobody uses any more.
	for i := range maxKeys - 1 {
		look(fmt.Sprint("cvy_good", i), codes.OK)
	}
	now = now.Add(grace)
	look("cvy_good", codes.OK)
	look("cvy_goodnew", codes.OK)
	if asked["cvy_good"] != 2 || len(k.known) != 2 {
		t.Errorf("the key that is used was asked about %d times; %d keys are kept", asked["cvy_good"], len(k.known))
	}
}

func TestAForgottenKeyIsAskedAboutAgain(t *testing.T) {
	s := &service{now: time.Unix(1000, 0)}
	k := s.keys()
	k.Identify(t.Context(), "cvy_x", Attempt{})
	k.Forget("key_2")
	k.Identify(t.Context(), "cvy_x", Attempt{})
	if s.asked != 1 {
		t.Fatalf("asked %d times", s.asked)
	}
	k.Forget("key_1")
	if k.Identify(t.Context(), "cvy_x", Attempt{}); s.asked != 2 {
		t.Fatalf("asked %d times after it was forgotten", s.asked)
	}
}

func TestWhatOnlyTheMeshMaySayIsTakenOutOfACall(t *testing.T) {
	k := (&service{now: time.Unix(1000, 0)}).keys()
	in := metadata.Pairs("authorization", "bearer  cvy_x", "covey-tenant", "other", "covey-scopes", "admin", "traceparent", "kept")
	ctx, err := k.Auth(metadata.NewIncomingContext(t.Context(), in), "/x.y/GetZ")
	if err != nil {
		t.Fatal(err)
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md.Get("covey-tenant"))+len(md.Get("covey-scopes")) > 0 || !slices.Equal(md.Get("traceparent"), []string{"kept"}) || tenant.From(ctx) != "acme" {
		t.Fatalf("left %v, tenant %s", md, tenant.From(ctx))
	}
	if _, err := k.Auth(metadata.NewIncomingContext(t.Context(), in), "/x.y/DeleteZ"); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("a key that may read deletes: %v", err)
	}
}

func TestASecretIsFoundInEitherHeader(t *testing.T) {
	for want, h := range map[string][2][]string{
		"a": {{"Bearer a"}, nil}, "b": {{"bEARER b"}, {"c"}}, "c": {{"Basic x"}, {"c"}}, "d": {nil, {" d "}}, "": {{"Bearer"}, {"e"}},
	} {
		if got := Secret(h[0], h[1]); got != want {
			t.Errorf("%v: %q", h, got)
		}
	}
}

func TestACallEndsWithItsKeyAndNotWithTheServiceThatKnowsKeys(t *testing.T) {
	var answer atomic.Pointer[error]
	asked := make(chan struct{})
	k := New(func(ctx context.Context, _ string) (Caller, error) {
		select {
		case asked <- struct{}{}:
		case <-ctx.Done():
		}
		if err := answer.Load(); err != nil {
			return Caller{}, *err
		}
		return Caller{Tenant: "acme", KeyID: "key_1", Scopes: []string{Read}}, nil
	})
	k.recheck = time.Millisecond
	k.now = func() time.Time { return time.Now().Add(time.Duration(now.Add(1)) * fresh) } // No answer is fresh.
	say := func(err error) {
		answer.Store(&err)
		<-asked
		<-asked
	}
	go func() { <-asked }()
	ctx, err := k.Identify(t.Context(), "cvy_x", Attempt{})
	if err != nil {
		t.Fatal(err)
	}
	say(nil)
	say(status.Error(codes.Unavailable, "gone"))
	if ctx.Err() != nil || Ended(ctx) != nil {
		t.Fatalf("a call ended with the service: %v", context.Cause(ctx))
	}
	err = status.Error(codes.Unauthenticated, "revoked")
	answer.Store(&err)
	<-asked
	<-ctx.Done()
	if status.Code(Ended(ctx)) != codes.Unauthenticated {
		t.Fatalf("it ended with %v", context.Cause(ctx))
	}
}

// now makes times that differ.
var now atomic.Int64
