package e2e

import (
	"context"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	consul "github.com/hashicorp/consul/api"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// wantError fails unless err has the code and its message all of the parts.
func wantError(t *testing.T, err error, code codes.Code, parts ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("got %v, want code %s", err, code)
	}
	for _, p := range parts {
		if !strings.Contains(status.Convert(err).Message(), p) {
			t.Errorf("the message %q lacks %q", status.Convert(err).Message(), p)
		}
	}
}

// agent dials a host agent past the gateway, as sandboxd does.
func agent(t *testing.T, id string) hostv1.HostServiceClient {
	t.Helper()
	c := consul.DefaultNonPooledConfig() // A pooled one keeps its connections, and Consul bounds them.
	c.Address = s.m.ConsulAddr
	client, err := consul.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := client.Health().Service("covey-host", "", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(e *consul.ServiceEntry) bool { return e.Service.Meta["host_id"] == id })
	if i < 0 {
		t.Fatalf("Consul has no healthy host %s", id)
	}
	conn, err := grpc.NewClient(net.JoinHostPort(list[i].Service.Address, strconv.Itoa(list[i].Service.Port)), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return hostv1.NewHostServiceClient(conn)
}

// onHost is the sandbox as its host sees it; nil if the host has it no more.
func onHost(t *testing.T, ctx context.Context, host, id string) *hostv1.HostSandbox {
	t.Helper()
	res, err := agent(t, host).ListSandboxes(ctx, &hostv1.ListSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range res.GetSandboxes() {
		if sb.GetSandboxId() == id {
			return sb
		}
	}
	return nil
}

func TestAVMOutlivesTheRequestThatMadeIt(t *testing.T) {
	ctx := start(t)
	made, cancel := context.WithCancel(ctx)
	sb := create(t, made, &sandboxv1.CreateSandboxRequest{})
	cancel()
	if got := sh(t, ctx, sb.GetId(), "echo alive"); got != "alive" {
		t.Fatalf("it answers %q", got)
	}
}

func TestASandboxWhoseVMMIsKilledFailsWithTheReasonAndIsFreed(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{})
	pid := int(onHost(t, ctx, sb.GetHostId(), sb.GetId()).GetPid())
	p, err := os.FindProcess(pid)
	if err != nil || pid == 0 {
		t.Fatalf("pid %d: %v", pid, err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "sandbox FAILED", func() bool { return get(t, ctx, sb.GetId()).GetState() == sandboxv1.State_STATE_FAILED })
	if r := get(t, ctx, sb.GetId()).GetReason(); !strings.Contains(r, "SIGKILL") {
		t.Errorf("the reason is %q", r)
	}
	eventually(t, 5*time.Second, "everything freed", func() bool {
		return len(holdingsOf(sb.GetId())) == 0
	})
	_, err = s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: sb.GetId(), Cmd: "true"})
	wantError(t, err, codes.FailedPrecondition, "FAILED")
}

func TestBadCreationsAreRefusedWithTheFieldAndWhatIsLegal(t *testing.T) {
	ctx := start(t)
	for name, c := range map[string]struct {
		req   *sandboxv1.CreateSandboxRequest
		code  codes.Code
		parts []string
	}{
		"unknown template":  {&sandboxv1.CreateSandboxRequest{Template: "no-such"}, codes.NotFound, []string{"no-such"}},
		"1000 vCPUs":        {&sandboxv1.CreateSandboxRequest{Template: "tiny", Vcpus: 1000}, codes.InvalidArgument, []string{"vcpus", "1 to 8", "1000"}},
		"too little memory": {&sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 1}, codes.InvalidArgument, []string{"memory_mb", "128", "got 1"}},
		"disk too small":    {&sandboxv1.CreateSandboxRequest{Template: "tiny", DiskMb: 1}, codes.InvalidArgument, []string{"disk_mb", "512"}},
		"bad label":         {&sandboxv1.CreateSandboxRequest{Template: "tiny", Metadata: map[string]string{"bad key": ""}}, codes.InvalidArgument, []string{"metadata"}},
		"bad range":         {&sandboxv1.CreateSandboxRequest{Template: "tiny", Network: &sandboxv1.NetworkPolicy{AllowCidrs: []string{"10.0.0.0/99"}}}, codes.InvalidArgument, []string{"10.0.0.0/99"}},
		"no such host":      {&sandboxv1.CreateSandboxRequest{Template: "tiny", HostLabels: map[string]string{"host": "none"}}, codes.ResourceExhausted, nil},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := s.sandboxes.CreateSandbox(ctx, c.req)
			if err == nil {
				remove(t, res.GetSandbox().GetId())
			}
			wantError(t, err, c.code, c.parts...)
		})
	}
}

func TestWhereThereIsNoRoomTheRefusalSaysWhatWasAskedAndWhatIsFree(t *testing.T) {
	ctx := start(t)
	// 16 GiB for each: the two hosts of the mesh offer less than that in all.
	_, err := s.sandboxes.CreateSandbox(ctx, &sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 16384})
	wantError(t, err, codes.ResourceExhausted, "16384", "free")
}

func TestExecInASandboxThatIsNotThereOrHasStopped(t *testing.T) {
	ctx := start(t)
	_, err := s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: "sb_01ARZ3NDEKTSV4RRFFQ69G5FAV", Cmd: "true"})
	wantError(t, err, codes.NotFound, "sb_01ARZ3NDEKTSV4RRFFQ69G5FAV")
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{})
	if _, err := s.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: sb.GetId()}); err != nil {
		t.Fatal(err)
	}
	_, err = s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: sb.GetId(), Cmd: "true"})
	wantError(t, err, codes.FailedPrecondition, "STOPPED")
	if left := holdingsOf(sb.GetId()); len(left) > 0 {
		t.Errorf("left of the deleted sandbox: %v", left)
	}
}

func TestTwentySandboxesAtOnceAllComeUpOrAreRefused(t *testing.T) {
	ctx := start(t)
	type result struct {
		sb  *sandboxv1.Sandbox
		err error
	}
	results := make(chan result)
	for range 20 {
		go func() {
			r, err := s.sandboxes.CreateSandbox(ctx, &sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 256, Metadata: map[string]string{"twenty": "yes"}})
			results <- result{r.GetSandbox(), err}
		}()
	}
	var up []string
	for range 20 {
		r := <-results
		switch {
		case r.err == nil:
			up = append(up, r.sb.GetId())
			remove(t, r.sb.GetId())
		case status.Code(r.err) != codes.ResourceExhausted:
			t.Errorf("neither made nor refused: %v", r.err)
		}
	}
	t.Logf("%d of 20 are up", len(up))
	if len(up) == 0 {
		t.Fatal("none came up")
	}
	for _, id := range up {
		if got := sh(t, ctx, id, "echo $((6*7))"); got != "42" {
			t.Errorf("%s answers %q", id, got)
		}
	}
	list, err := s.sandboxes.ListSandboxes(ctx, &sandboxv1.ListSandboxesRequest{Metadata: map[string]string{"twenty": "yes"}, PageSize: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range list.GetSandboxes() {
		if sb.GetState() == sandboxv1.State_STATE_RUNNING && !slices.Contains(up, sb.GetId()) || strings.HasSuffix(sb.GetState().String(), "ING") && sb.GetState() != sandboxv1.State_STATE_RUNNING {
			t.Errorf("half made: %s is %s", sb.GetId(), sb.GetState())
		}
	}
}
