package meshtest

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// Small is a sandbox that is quick to save.
func Small() *sandboxv1.CreateSandboxRequest { return &sandboxv1.CreateSandboxRequest{MemoryMb: 128} }

// On is a small sandbox that only a certain host takes.
func On(host string) *sandboxv1.CreateSandboxRequest {
	q := Small()
	q.HostLabels = map[string]string{"host": host}
	return q
}

// Create makes a sandbox that is deleted at the test's end.
func (s *Suite) Create(t *testing.T, ctx context.Context, r *sandboxv1.CreateSandboxRequest) *sandboxv1.Sandbox {
	t.Helper()
	if r.Template == "" {
		r.Template = "tiny"
	}
	res, err := s.Sandboxes.CreateSandbox(ctx, r)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	s.Remove(t, res.GetSandbox().GetId())
	return res.GetSandbox()
}

// Remove deletes a sandbox at the test's end.
func (s *Suite) Remove(t *testing.T, id string) {
	s.Cleanup(t, func(ctx context.Context) {
		if _, err := s.Sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: id}); err != nil && status.Code(err) != codes.NotFound {
			t.Errorf("delete %s: %v", id, err)
		}
	})
}

// Sh runs a shell command as root and returns its output.
func (s *Suite) Sh(t *testing.T, ctx context.Context, id, script string) string {
	t.Helper()
	res, err := s.exec(ctx, id, script)
	return output(t, id, script, res, err)
}

// Look runs a shell command that changes nothing, so that it may be run again: a call may have gone to a host that the sandbox is on no more, and that
// does not answer.
func (s *Suite) Look(t *testing.T, ctx context.Context, id, script string) string {
	t.Helper()
	res, err := Patiently(ctx, func(ctx context.Context) (*guestv1.ExecResponse, error) { return s.exec(ctx, id, script) })
	return output(t, id, script, res, err)
}

func (s *Suite) exec(ctx context.Context, id, script string) (*guestv1.ExecResponse, error) {
	return s.Processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "/bin/sh", Args: []string{"-c", script}, User: "root"})
}

func output(t *testing.T, id, script string, res *guestv1.ExecResponse, err error) string {
	t.Helper()
	if err != nil {
		t.Fatalf("exec %q in %s: %v", script, id, err)
	}
	if res.GetExitCode() != 0 {
		t.Fatalf("exec %q in %s: exit code %d: %s%s", script, id, res.GetExitCode(), res.GetStderr(), res.GetError())
	}
	return strings.TrimSpace(res.GetStdout())
}

// Get is the sandbox as it is now, or as soon as it can be asked for.
func (s *Suite) Get(t *testing.T, ctx context.Context, id string) *sandboxv1.Sandbox {
	t.Helper()
	res, err := Patiently(ctx, func(ctx context.Context) (*sandboxv1.GetSandboxResponse, error) {
		return s.Sandboxes.GetSandbox(ctx, &sandboxv1.GetSandboxRequest{SandboxId: id})
	})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetSandbox()
}

// Pause pauses a sandbox.
func (s *Suite) Pause(t *testing.T, ctx context.Context, id string) *sandboxv1.Sandbox {
	t.Helper()
	res, err := s.Sandboxes.PauseSandbox(ctx, &sandboxv1.PauseSandboxRequest{SandboxId: id})
	if err != nil || res.GetSandbox().GetState() != sandboxv1.State_STATE_PAUSED {
		t.Fatalf("pause: %v, %v", res, err)
	}
	return res.GetSandbox()
}

// Durable waits until a paused sandbox no longer depends on its host.
func (s *Suite) Durable(t *testing.T, ctx context.Context, id string) {
	t.Helper()
	Eventually(t, time.Minute, id+" is durable", func() bool { return s.Get(t, ctx, id).GetDurable() })
}

// Template saves a sandbox as a template that is deleted at the test's end, after sandboxes that were made from it later.
func (s *Suite) Template(t *testing.T, ctx context.Context, id, name string) *snapshotv1.Snapshot {
	t.Helper()
	res, err := s.Sandboxes.CreateSnapshot(ctx, &sandboxv1.CreateSnapshotRequest{SandboxId: id, Name: name})
	if err != nil {
		t.Fatalf("template: %v", err)
	}
	s.Cleanup(t, func(ctx context.Context) {
		Eventually(t, 20*time.Second, "template "+name+" deleted", func() bool {
			_, err := s.Snapshots.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: res.GetSnapshot().GetId()})
			return err == nil || status.Code(err) == codes.NotFound
		})
	})
	return res.GetSnapshot()
}

// Settled waits until a sandbox is running or paused, or gone with the reason, and returns it.
func (s *Suite) Settled(t *testing.T, ctx context.Context, id string) *sandboxv1.Sandbox {
	t.Helper()
	var sb *sandboxv1.Sandbox
	Eventually(t, time.Minute, id+" is settled", func() bool {
		res, err := s.Sandboxes.GetSandbox(ctx, &sandboxv1.GetSandboxRequest{SandboxId: id})
		sb = res.GetSandbox()
		switch sb.GetState() {
		case sandboxv1.State_STATE_RUNNING, sandboxv1.State_STATE_PAUSED:
			return err == nil
		case sandboxv1.State_STATE_FAILED, sandboxv1.State_STATE_STOPPED:
			return sb.GetReason() != ""
		}
		return false
	})
	return sb
}
