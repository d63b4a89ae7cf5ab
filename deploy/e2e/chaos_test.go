package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/coveyhq/covey/deploy/meshtest"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// drainedDespite drains a host while something dies, and drains again until it is empty; all loads must be well elsewhere.
func drainedDespite(t *testing.T, dies func(context.Context)) {
	ctx := start(t)
	var loads []meshtest.Load
	for range 2 {
		loads = append(loads, burden(t, ctx, placed(t, ctx, "host-a").GetId(), 2))
	}
	t.Cleanup(func() { cordon(t, as(context.Background(), s.key), "host-a", false) })
	var wg sync.WaitGroup
	wg.Go(func() {
		all, err := drainHost(ctx, "host-a")
		t.Logf("the drain that was disturbed: %d events, %v", len(all), err)
	})
	eventually(t, 20*time.Second, "one is being moved", func() bool { return get(t, ctx, loads[0].ID).GetState() != sandboxv1.State_STATE_RUNNING })
	dies(ctx)
	wg.Wait()
	s.Emptied(t, ctx, "host-a")
	for _, l := range loads {
		sb := s.Settled(t, ctx, l.ID)
		if sb.GetState() != sandboxv1.State_STATE_RUNNING || sb.GetHostId() != "host-b" {
			t.Errorf("%s is %s on %s: %s", l.ID, sb.GetState(), sb.GetHostId(), sb.GetReason())
			continue
		}
		l.Check(t, ctx)
	}
	s.Intact(t, ctx)
}

func TestADrainGoesOnAfterTheSandboxServiceDies(t *testing.T) {
	s.Impatient(t, start(t), "lease: 3s")
	drainedDespite(t, func(ctx context.Context) { kill(t, ctx, "sandboxd"); back(t, ctx, "sandboxd") })
}

func TestADrainGoesOnAfterItsHostAgentDies(t *testing.T) {
	drainedDespite(t, func(ctx context.Context) {
		kill(t, ctx, "hostagentd-host-a")
		if err := s.m.Restart(ctx, "hostagentd-host-a"); err != nil {
			t.Fatal(err)
		}
	})
}
