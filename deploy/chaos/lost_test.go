package chaos

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/deploy/mesh"
	"github.com/coveyhq/covey/deploy/meshtest"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
)

func TestAHostThatIsLostTakesOnlyWhatRanThereAndThatIsSaidWithTheReason(t *testing.T) {
	for _, f := range []struct {
		name string
		lose func(context.Context) error
		back func(*testing.T, context.Context)
	}{
		{
			"it dies", func(ctx context.Context) error { return s.Mesh.KillHost(ctx, target) },
			func(t *testing.T, ctx context.Context) { s.Back(t, ctx, "hostagentd-"+target) },
		},
		{
			"it is cut off for too long", func(context.Context) error { return s.Mesh.CutOff(target) },
			func(t *testing.T, ctx context.Context) {
				if err := s.Mesh.Mend(ctx, target); err != nil {
					t.Error(err)
				}
			},
		},
	} {
		t.Run(f.name, func(t *testing.T) {
			ctx := s.Start(t, 2*time.Minute)
			paused, runs := placed(t, ctx, target), placed(t, ctx, target)
			l := s.Burden(t, ctx, paused, 1)
			s.Pause(t, ctx, paused)
			s.Durable(t, ctx, paused)
			if err := f.lose(ctx); err != nil {
				t.Fatal(err)
			}
			s.Cleanup(t, func(ctx context.Context) { f.back(t, ctx) })
			hostIs(t, ctx, target, schedulerv1.HostState_HOST_STATE_LOST)
			resumedSomewhere(t, ctx, l, "")
			var lost *sandboxv1.Sandbox
			meshtest.Eventually(t, time.Minute, "what ran there is reported lost", func() bool {
				lost = s.Get(t, ctx, runs)
				return lost.GetState() == sandboxv1.State_STATE_FAILED
			})
			if !strings.Contains(lost.GetReason(), target) || !strings.Contains(lost.GetReason(), "not heard of") {
				t.Errorf("the reason is %q", lost.GetReason())
			}
			_, err := s.Sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: runs})
			if status.Code(err) != codes.FailedPrecondition {
				t.Errorf("resuming what is lost: %v", err)
			}
			f.back(t, ctx)
			meshtest.Eventually(t, 30*time.Second, target+" has nothing of it any more", func() bool { return len(s.HoldingsOf(runs)) == 0 })
			if sb := s.Get(t, ctx, runs); sb.GetState() != sandboxv1.State_STATE_FAILED {
				t.Errorf("after its host came back it is %s", sb.GetState())
			}
			l.Check(t, ctx)
			s.Intact(t, ctx)
		})
	}
}

// asleep is a sandbox with a load that the source has paused, durably.
func asleep(t *testing.T, ctx context.Context, mb int) meshtest.Load {
	t.Helper()
	l := s.Burden(t, ctx, placed(t, ctx, source), mb)
	s.Pause(t, ctx, l.ID)
	s.Durable(t, ctx, l.ID)
	return l
}

// resuming begins to resume a sandbox on the target; the answer comes on the channel.
func resuming(t *testing.T, ctx context.Context, id string) <-chan error {
	t.Helper()
	answer := make(chan error, 1)
	go func() {
		_, err := s.Sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id, HostId: target})
		answer <- err
	}()
	meshtest.Eventually(t, 20*time.Second, "it is being resumed", func() bool { return s.Get(t, ctx, id).GetState() != sandboxv1.State_STATE_PAUSED })
	return answer
}

func TestAResumeThatOnlyADeadObjectStoreCouldServeWaitsOrSaysSoAndGoesOnAfterwards(t *testing.T) {
	ctx := s.Start(t, 2*time.Minute)
	l := asleep(t, ctx, 4)
	if err := s.Mesh.Part(source, target); err != nil { // Its peer.
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Mesh.Join(source, target) })
	s.Kill(t, ctx, "objects")
	answer := resuming(t, ctx, l.ID)
	pass(ctx, failing)
	switch sb := s.Get(t, ctx, l.ID); sb.GetState() {
	case sandboxv1.State_STATE_RESUMING, sandboxv1.State_STATE_PAUSED:
	default:
		t.Fatalf("without its bytes it is %s: %s", sb.GetState(), sb.GetReason())
	}
	s.Back(t, ctx, "objects")
	err := <-answer
	t.Logf("the resume answered %v", err)
	if !refusedClearly(err) {
		t.Errorf("the resume answered %v", err)
	}
	well(t, ctx, l, false)
}

func TestAPeerThatIsCutOffFromTheOneThatAsksIsReplacedByTheRegistry(t *testing.T) {
	ctx := s.Start(t, 2*time.Minute)
	l := asleep(t, ctx, 6)
	if err := s.Mesh.Slow(target, linkSpeed/4); err != nil { // Half of it takes more than 10 s.
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Mesh.Slow(target, 0) }) // It is fast again unless the test failed before.
	answer := resuming(t, ctx, l.ID)
	if err := s.Mesh.Part(source, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Mesh.Join(source, target) })
	before := sentBy(t, mesh.RegistrySite)
	if err := s.Mesh.Slow(target, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if sb := s.Get(t, ctx, l.ID); sb.GetHostId() != target {
		t.Fatalf("it is on %s", sb.GetHostId())
	}
	l.Check(t, ctx)
	if sent := sentBy(t, mesh.RegistrySite) - before; sent < 6<<20 {
		t.Errorf("the registry has sent %d bytes", sent)
	}
}
