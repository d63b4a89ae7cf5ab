package gateway_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"

	"github.com/coveyhq/covey/gateway/internal/meshtest"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

func TestNativeGRPCHasTheSamePortAndTheSameRules(t *testing.T) {
	g := start(t)
	conn, ctx := g.dial(), as(t, meshtest.AdminKey)
	sandboxes := sandboxv1.NewSandboxServiceClient(conn)
	made, err := sandboxes.CreateSandbox(ctx, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetSandbox().GetId()
	if _, err := snapshotv1.NewSnapshotServiceClient(conn).ListSnapshots(ctx, &snapshotv1.ListSnapshotsRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := schedulerv1.NewHostsServiceClient(conn).ListHosts(ctx, &schedulerv1.ListHostsRequest{}); err != nil {
		t.Error(err)
	}
	res, err := guestv1.NewProcessServiceClient(conn).Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "echo", Args: []string{"hi"}})
	if err != nil || res.GetStdout() != "hi\n" {
		t.Errorf("exec: %v, %v", res, err)
	}
	for what, c := range map[string]struct {
		call func() error
		code codes.Code
	}{
		"no key": {func() error {
			_, err := sandboxes.ListSandboxes(t.Context(), &sandboxv1.ListSandboxesRequest{})
			return err
		}, codes.Unauthenticated},
		"a key that may only read": {func() error {
			_, err := guestv1.NewProcessServiceClient(conn).Exec(as(t, meshtest.ReadKey), &guestv1.ExecRequest{SandboxId: id, Cmd: "true"})
			return err
		}, codes.PermissionDenied},
		"another tenant": {func() error {
			_, err := guestv1.NewProcessServiceClient(conn).Exec(as(t, meshtest.OtherKey), &guestv1.ExecRequest{SandboxId: id, Cmd: "true"})
			return err
		}, codes.NotFound},
		"a service of the inside": {func() error {
			_, err := sandboxv1.NewLocatorServiceClient(conn).LocateSandbox(ctx, &sandboxv1.LocateSandboxRequest{SandboxId: id})
			return err
		}, codes.Unimplemented},
		"a host's own method": {func() error {
			_, err := hostv1.NewHostServiceClient(conn).DestroySandbox(ctx, &hostv1.DestroySandboxRequest{SandboxId: id})
			return err
		}, codes.Unimplemented},
		"an illegal value": {func() error {
			_, err := sandboxes.CreateSandbox(ctx, &sandboxv1.CreateSandboxRequest{Vcpus: 1000})
			return err
		}, codes.InvalidArgument},
	} {
		if err := c.call(); status.Code(err) != c.code || apierr.Reason(err) == "" {
			t.Errorf("%s: %v, reason %q", what, err, apierr.Reason(err))
		}
	}
	if h, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", h, err)
	}
}

func TestOnlyTheGatewaySaysWhoCalls(t *testing.T) {
	g := start(t)
	ctx := metadata.AppendToOutgoingContext(as(t, meshtest.ReadKey), "covey-tenant", "other", "covey-scopes", "admin")
	conn, id := g.dial(), g.Add()
	if _, err := sandboxv1.NewSandboxServiceClient(conn).GetSandbox(ctx, &sandboxv1.GetSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	check := func(scopes string) {
		t.Helper()
		md := g.Metadata()
		if got := md.Get("covey-tenant"); len(got) != 1 || got[0] != "default" {
			t.Errorf("tenant %q", got)
		}
		if got := md.Get("covey-scopes"); len(got) > 1 || len(got) == 1 && got[0] != scopes {
			t.Errorf("scopes %q", got)
		}
		if got := md.Get("authorization"); len(got) > 0 {
			t.Error("the key went on")
		}
	}
	check("read")
	if _, err := guestv1.NewProcessServiceClient(conn).ListProcesses(ctx, &guestv1.ListProcessesRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	check("")
}

func TestStreamsPassNatively(t *testing.T) {
	g := start(t)
	conn, ctx, id := g.dial(), as(t, meshtest.AdminKey), g.Add()
	st, err := guestv1.NewProcessServiceClient(conn).ExecStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	start := &guestv1.ProcessStart{Cmd: "cat"}
	for _, m := range []*guestv1.ExecStreamRequest{
		{SandboxId: id, Frame: &guestv1.ExecStreamRequest_Start{Start: start}}, {Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: []byte("through")}},
		{Frame: &guestv1.ExecStreamRequest_CloseStdin{CloseStdin: &guestv1.CloseStdin{}}},
	} {
		if err := st.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	var out string
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		out += string(m.GetOutput().GetData())
	}
	if out != "through" {
		t.Errorf("cat gave %q", out)
	}
	watch(t, ctx, conn, id)
}

// watch sees a sandbox's state, and then a change of it.
func watch(t *testing.T, ctx context.Context, conn *grpc.ClientConn, id string) {
	t.Helper()
	c := sandboxv1.NewSandboxServiceClient(conn)
	w, err := c.WatchSandboxes(ctx, &sandboxv1.WatchSandboxesRequest{SandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []sandboxv1.State{sandboxv1.State_STATE_RUNNING, sandboxv1.State_STATE_PAUSED} {
		m, err := w.Recv()
		if err != nil || m.GetSandbox().GetState() != want {
			t.Fatalf("%v, %v", m, err)
		}
		if _, err := c.PauseSandbox(ctx, &sandboxv1.PauseSandboxRequest{SandboxId: id}); err != nil {
			t.Fatal(err)
		}
	}
}
