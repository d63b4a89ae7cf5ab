package chaos

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/deploy/mesh"
	"github.com/coveyhq/covey/deploy/meshtest"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
)

func onHost(host string) *sandboxv1.CreateSandboxRequest { return meshtest.On(host) }

// placed makes a small sandbox that any host takes, and that is on a certain one now.
func placed(t *testing.T, ctx context.Context, host string) string {
	t.Helper()
	for _, other := range s.Mesh.Hosts {
		if other != host {
			s.Cordon(t, ctx, other, true)
			defer s.Cordon(t, ctx, other, false)
		}
	}
	sb := s.Create(t, ctx, meshtest.Small())
	if sb.GetHostId() != host {
		t.Fatalf("it is on %s", sb.GetHostId())
	}
	return sb.GetId()
}

// act is what four sandboxes, each with a load in memory and on disk, are doing while something fails.
type act struct {
	name string
	// uploaded runs on the source and is paused: its snapshot is on its way.
	// resumed was paused on the source, durably, and is resumed on the target.
	// moved runs on the third host, which is drained.
	uploaded, resumed, moved meshtest.Load
	// spawned is made on the target of a template that the source has made.
	spawned meshtest.Load

	wg                  sync.WaitGroup
	resumeErr, spawnErr error
}

const (
	// linkSpeed keeps all four at it while something fails, bytes per second of each host.
	linkSpeed = 2 << 20
	// beginSpeed is the source's until then: with it the upload, of 10 MiB that cannot be compressed, takes longer than is waited for the others to begin.
	beginSpeed = 96 << 10
	// beginTime is how long that is, on a quiet machine.
	beginTime = 20 * time.Second
)

// prepare gives the act its sandboxes.
func prepare(t *testing.T, ctx context.Context, name string) *act {
	t.Helper()
	// Looked for when everything has been deleted.
	var ids []string
	t.Cleanup(func() { nothingLeft(t, ids) })
	a := &act{name: name}
	up, res, mv := placed(t, ctx, source), placed(t, ctx, source), placed(t, ctx, third)
	a.resumed = s.Burden(t, ctx, res, 2)
	s.Template(t, ctx, res, "chaos-"+name)
	s.Pause(t, ctx, res)
	a.uploaded, a.moved = s.Burden(t, ctx, up, 5), s.Burden(t, ctx, mv, 1)
	s.Durable(t, ctx, res)
	ids = []string{up, res, mv}
	return a
}

// begin has all four go on, and waits until each is at it.
func (a *act) begin(t *testing.T, ctx context.Context) {
	t.Helper()
	for _, host := range s.Mesh.Hosts {
		speed := uint64(linkSpeed)
		if host == source {
			speed = beginSpeed
		}
		if err := s.Mesh.Slow(host, speed); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Mesh.Slow(host, 0) }) // It has been, unless the test failed in between.
	}
	s.Cleanup(t, func(ctx context.Context) { s.Cordon(t, ctx, third, false) })
	s.Pause(t, ctx, a.uploaded.ID)
	a.wg.Go(func() {
		_, a.resumeErr = s.Sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: a.resumed.ID, HostId: target})
	})
	made := make(chan string, 1)
	a.wg.Go(func() {
		q := onHost(target)
		q.Template, q.MemoryMb, q.RequestId = "chaos-"+a.name, 0, "chaos-"+a.name
		var res *sandboxv1.CreateSandboxResponse
		res, a.spawnErr = meshtest.Patiently(ctx, func(ctx context.Context) (*sandboxv1.CreateSandboxResponse, error) {
			return s.Sandboxes.CreateSandbox(ctx, q)
		})
		made <- res.GetSandbox().GetId()
	})
	a.wg.Go(func() {
		all, err := s.DrainHost(ctx, third)
		t.Logf("the drain that was disturbed: %d events, %v", len(all), err)
	})
	meshtest.Eventually(t, beginTime, "all four are at it", func() bool {
		a.spawned = a.resumed.Of(spawnedOf(ctx, "chaos-"+a.name))
		return a.spawned.ID != "" && s.Get(t, ctx, a.resumed.ID).GetState() != sandboxv1.State_STATE_PAUSED &&
			s.Get(t, ctx, a.moved.ID).GetState() != sandboxv1.State_STATE_RUNNING
	})
	s.Remove(t, a.spawned.ID)
	if s.Get(t, ctx, a.uploaded.ID).GetDurable() {
		t.Error("the upload was faster than the failure")
	}
	if err := s.Mesh.Slow(source, linkSpeed); err != nil {
		t.Fatal(err)
	}
}

// spawnedOf finds the sandbox of a template; "" if there is none yet.
func spawnedOf(ctx context.Context, template string) string {
	res, err := s.Sandboxes.ListSandboxes(ctx, &sandboxv1.ListSandboxesRequest{PageSize: 10})
	if err != nil {
		return ""
	}
	for _, sb := range res.GetSandboxes() {
		if sb.GetTemplate() == template {
			return sb.GetId()
		}
	}
	return ""
}

// end waits for the calls that were disturbed, with fast links.
func (a *act) end(t *testing.T) {
	t.Helper()
	for _, host := range s.Mesh.Hosts {
		if err := s.Mesh.Slow(host, 0); err != nil {
			t.Error(err)
		}
	}
	a.wg.Wait()
	t.Logf("the resume answered %v, the spawn %v", a.resumeErr, a.spawnErr)
}

// resumedSomewhere resumes a sandbox, if it is paused, and checks its load. A host, unless it is "", is where.
func resumedSomewhere(t *testing.T, ctx context.Context, l meshtest.Load, host string) {
	t.Helper()
	_, err := meshtest.Patiently(ctx, func(ctx context.Context) (*sandboxv1.ResumeSandboxResponse, error) {
		return s.Sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: l.ID, HostId: host})
	})
	if err != nil {
		t.Fatalf("resume: %v", err)
	}
	l.Check(t, ctx)
}

// well checks that a sandbox is RUNNING or PAUSED, with its load; or, if it may be lost, that this is said with the reason.
func well(t *testing.T, ctx context.Context, l meshtest.Load, mayBeLost bool) {
	t.Helper()
	sb := s.Settled(t, ctx, l.ID)
	t.Logf("it is %s on %s %s", sb.GetState(), sb.GetHostId(), sb.GetReason())
	switch sb.GetState() {
	case sandboxv1.State_STATE_RUNNING, sandboxv1.State_STATE_PAUSED:
		resumedSomewhere(t, ctx, l, "")
	default:
		if !mayBeLost {
			t.Errorf("it is %s: %s", sb.GetState(), sb.GetReason())
		}
	}
}

// hostIs waits until the scheduler sees a host in a state.
func hostIs(t *testing.T, ctx context.Context, host string, want schedulerv1.HostState) {
	t.Helper()
	meshtest.Eventually(t, 40*time.Second, host+" is "+want.String(), func() bool {
		res, err := s.Hosts.ListHosts(ctx, &schedulerv1.ListHostsRequest{})
		return err == nil && slices.ContainsFunc(res.GetHosts(), func(h *schedulerv1.Host) bool { return h.GetId() == host && h.GetState() == want })
	})
}

// nothingLeft waits until no host has anything of sandboxes that were deleted.
func nothingLeft(t *testing.T, ids []string) {
	var left []string
	deadline := time.Now().Add(meshtest.Overrun * 20 * time.Second)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(deadline) {
		left = nil
		for _, id := range ids {
			left = append(left, s.HoldingsOf(id)...)
		}
		for _, p := range mesh.LookAround(s.Mesh.Dir)["process"] {
			if strings.HasPrefix(p, "qemu") || strings.HasPrefix(p, "firecracker") {
				left = append(left, p)
			}
		}
		if len(left) == 0 {
			return
		}
		<-tick.C
	}
	t.Errorf("of deleted sandboxes there is left: %s", strings.Join(left, ", "))
}

// refusedClearly tells that a call was answered with an error that a client can act on.
func refusedClearly(err error) bool {
	switch status.Code(err) {
	case codes.OK, codes.Unavailable, codes.Aborted, codes.FailedPrecondition, codes.ResourceExhausted, codes.DeadlineExceeded:
		return true
	}
	return false
}
