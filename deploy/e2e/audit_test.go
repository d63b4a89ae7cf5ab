package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// audit is what the log has of something: method, detail and result, oldest first.
func audit(ctx context.Context, q *sandboxv1.ListAuditEventsRequest) []string {
	res, err := sandboxv1.NewTenantServiceClient(s.conn).ListAuditEvents(ctx, q)
	if err != nil {
		return []string{err.Error()}
	}
	out := []string{}
	for _, e := range res.GetEvents() {
		out = append(out, fmt.Sprintf("%s %q %s", e.GetMethod(), e.GetDetail(), e.GetCode()))
	}
	slices.Reverse(out)
	return out
}

// TestTheAuditLogHasWhatWasDoneAMomentBeforeTheGatewayWasKilled: a second is what may be lost.
func TestTheAuditLogHasWhatWasDoneAMomentBeforeTheGatewayWasKilled(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, small())
	id := sb.GetId()
	if _, err := s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "/bin/echo", Args: []string{"hunter2"}}); err != nil {
		t.Fatal(err)
	}
	st, err := s.processes.ExecStream(ctx)
	if err == nil {
		err = st.Send(&guestv1.ExecStreamRequest{SandboxId: id, Frame: &guestv1.ExecStreamRequest_Start{Start: &guestv1.ProcessStart{Cmd: "sleep", Args: []string{"60"}}}})
	}
	if err == nil {
		_, err = st.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`CreateSandbox "" OK`, `Exec "/bin/echo" OK`, `ExecStream "sleep" OK`}
	eventually(t, time.Second, "all of it is in the log", func() bool {
		return slices.Equal(audit(ctx, &sandboxv1.ListAuditEventsRequest{Target: id}), want)
	})
	kill(t, ctx, "gatewayd")
	back(t, ctx, "gatewayd")
	eventually(t, 30*time.Second, "the log can be read", func() bool {
		return slices.Contains(audit(ctx, &sandboxv1.ListAuditEventsRequest{Target: id}), `CreateSandbox "" OK`)
	})
	if got := audit(ctx, &sandboxv1.ListAuditEventsRequest{Target: id}); !slices.Equal(got, want) {
		t.Errorf("the log has %q, want %q", got, want)
	}
	// What goes past the sandbox service, and what is refused.
	if _, err := s.snapshots.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: "nothing-of-that-name"}); err == nil {
		t.Fatal("a snapshot that is not there was deleted")
	}
	if got := audit(ctx, &sandboxv1.ListAuditEventsRequest{Method: "DeleteSnapshot", Target: "nothing-of-that-name"}); !slices.Equal(got, []string{`DeleteSnapshot "" NOT_FOUND`}) {
		t.Errorf("of the registry: %q", got)
	}
	for range 3 {
		_, _ = s.sandboxes.ListSandboxes(as(ctx, "cvy_e2e!0000000000000000000000000000000000000000000"), &sandboxv1.ListSandboxesRequest{})
	}
	eventually(t, 10*time.Second, "the refusal is in the log", func() bool {
		got := audit(ctx, &sandboxv1.ListAuditEventsRequest{TenantId: "-", Code: "UNAUTHENTICATED"})
		return slices.ContainsFunc(got, func(e string) bool { return strings.Contains(e, "cvy_e2e!...") })
	})
}

// TestMetricsAndLogsAreInThePublicServices by native gRPC as by REST and the program.
func TestMetricsAndLogsAreInThePublicServices(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	eventually(t, 30*time.Second, "a sample is there", func() bool {
		m, err := s.sandboxes.GetSandboxMetrics(ctx, &sandboxv1.GetSandboxMetricsRequest{SandboxId: id})
		return err == nil && m.GetGuestMemoryTotalBytes() > 0 && len(m.GetHistory()) > 0
	})
	if _, err := s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: id, User: "root", Cmd: "sh", Args: []string{"-c", "echo a line of its own > /dev/console"}}); err != nil {
		t.Fatal(err)
	}
	var log []byte
	eventually(t, 10*time.Second, "the console has the line", func() bool {
		log = nil
		st, err := s.sandboxes.ReadSandboxLogs(ctx, &sandboxv1.ReadSandboxLogsRequest{SandboxId: id, TailBytes: 4096})
		for err == nil {
			var m *sandboxv1.ReadSandboxLogsResponse
			m, err = st.Recv()
			log = append(log, m.GetData()...)
		}
		return errors.Is(err, io.EOF) && strings.Contains(string(log), "a line of its own")
	})
}
