package rpc_test

import (
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// TestUsageEndsWhenASandboxEndedAndNotWhenThatWasNoticed has sandboxes end while no sandboxd runs, and comes a while later.
func TestUsageEndsWhenASandboxEndedAndNotWhenThatWasNoticed(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	make := func() *sandboxv1.Sandbox {
		return r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", Vcpus: 1, MemoryMb: 1024})
	}
	paused, failed, lost := make(), make(), make()
	r.stop()
	ended := time.Now()
	m.host(paused.GetHostId()).put(&hostv1.HostSandbox{SandboxId: paused.GetId(), State: stPaused, SnapshotId: "snap_auto", AutoPaused: true})
	m.host(failed.GetHostId()).kill(failed.GetId(), "the VMM was killed by signal 9")
	gone := m.host(lost.GetHostId())
	known := time.Now()
	<-time.After(time.Second) // What must not be counted.
	r = m.replica("two")
	r.becomes(t, patience, paused.GetId(), stPaused)
	r.becomes(t, patience, failed.GetId(), stFailed)
	m.scheduler.mu.Lock()
	m.scheduler.lost[gone.id], m.scheduler.heard = true, timestamppb.New(ended)
	m.scheduler.mu.Unlock()
	r.becomes(t, patience, lost.GetId(), stFailed)
	u, err := r.tenants.GetUsage(as(t, "acme"), &sandboxv1.GetUsageRequest{})
	if err != nil || len(u.GetSandboxes()) != 3 {
		t.Fatalf("%v, %v", u, err)
	}
	ran := map[string]float64{}
	for _, s := range u.GetSandboxes() {
		ran[s.GetSandboxId()] = s.GetRunningSeconds()
	}
	for what, sb := range map[string]*sandboxv1.Sandbox{"paused": paused, "failed": failed, "lost": lost} {
		now := r.get(t, sb.GetId())
		want := now.GetStateTime().AsTime().Sub(sb.GetStateTime().AsTime()).Seconds()
		if late := now.GetStateTime().AsTime().Sub(known); late > 300*time.Millisecond || math.Abs(ran[sb.GetId()]-want) > 1e-5 {
			t.Errorf("%s: it ran %f s by its usage, %f s by its times, and ended %s late", what, ran[sb.GetId()], want, late)
		}
	}
}

func TestAHostsClockThatIsWrongMakesNoUsageThatIsNegativeOrToCome(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	for name, off := range map[string]time.Duration{"slow": -time.Hour, "fast": time.Hour} {
		sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", Vcpus: 1, MemoryMb: 1024})
		host := m.host(sb.GetHostId())
		host.set(func() {
			host.here[sb.GetId()] = &hostv1.HostSandbox{SandboxId: sb.GetId(), State: sandboxv1.State_STATE_FAILED, StateTime: timestamppb.New(time.Now().Add(off))}
		})
		got := r.becomes(t, patience, sb.GetId(), stFailed).GetStateTime().AsTime()
		if got.Before(sb.GetStateTime().AsTime()) || got.After(time.Now().Add(time.Second)) {
			t.Errorf("by a clock that is %s it ended at %s; it ran since %s, now is %s", name, got, sb.GetStateTime().AsTime(), time.Now())
		}
	}
}
