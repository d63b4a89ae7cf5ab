package caller

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var table = Table{"/s/Place": {Sandbox}, "/s/Release": {Sandbox, Scheduler}, "/s/Old": nil}

func TestWhatHasNoRowNobodyMayCallAndARefusalSaysWhoMay(t *testing.T) {
	for _, x := range []struct {
		by     string
		method string
		says   string // "": it may
	}{
		{Sandbox, "/s/Place", ""},
		{Scheduler, "/s/Release", ""},
		{Host + "-a", "/s/Place", "covey-host-a may not call s/Place of d: covey-sandbox may"},
		{Gateway, "/s/Release", "covey-gateway may not call s/Release of d: covey-sandbox, covey-scheduler may"},
		{Sandbox, "/s/Old", "no daemon may"},
		{Sandbox, "/s/New", "no row of its table names that method"},
		{"", "/s/Place", "covey-sandbox may"},
	} {
		err := table.Check("d", Named(x.by), x.method)
		if (err == nil) != (x.says == "") || err != nil && (status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), x.says)) {
			t.Errorf("%s calls %s: %v, want %q", x.by, x.method, err, x.says)
		}
	}
}

func TestMethodsWithoutARowAreFound(t *testing.T) {
	server := map[string]grpc.ServiceInfo{
		"s":                     {Methods: []grpc.MethodInfo{{Name: "Place"}, {Name: "New"}}},
		"grpc.health.v1.Health": {Methods: []grpc.MethodInfo{{Name: "Check"}}},
	}
	if got := table.Lacks(server); !slices.Equal(got, []string{"/s/New"}) {
		t.Errorf("got %v", got)
	}
}

func TestAHostSpeaksForItselfAlone(t *testing.T) {
	for _, x := range []struct {
		by, host string
		may      bool
	}{
		{Host + "-a", "a", true}, {Host + "-a", "b", false}, {Host + "-a", "", false}, {Host + "-a-b", "a", false}, {Host + "-a-b", "a-b", true},
		{Host, "a", false}, {Host, "", false}, {Sandbox, "a", true},
	} {
		c := Named(x.by)
		if err := SpeaksFor(With(context.Background(), c), "host_id", x.host); (err == nil) != x.may {
			t.Errorf("%s for %q: %v", x.by, x.host, err)
		}
		if Named(c.Identity()) != c {
			t.Errorf("%s is named %s", x.by, c.Identity())
		}
	}
	if err := SpeaksFor(context.Background(), "host_id", "a"); err != nil {
		t.Errorf("without mutual TLS: %v", err)
	}
}
