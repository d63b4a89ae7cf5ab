package rpc_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/sandbox"
)

// A registry that is away for a moment says nothing of what it has.
func TestADurableSandboxWhoseHostIsLostIsResumedWhenTheRegistryIsBack(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	timing(t, func(w *sandbox.Timing) { w.Durable = time.Second })
	impatient := m.replica("two")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	id, home := sb.GetId(), sb.GetHostId()
	r.pause(t, id)
	eventually(t, 10*time.Second, "it is durable", func() bool { return r.get(t, id).GetDurable() })
	m.scheduler.mu.Lock()
	m.scheduler.lost[home] = true
	m.scheduler.mu.Unlock()
	m.registry.set(func() { m.registry.away = true })
	wantError(t, <-impatient.resumeOn(as(t, "acme"), id, ""), codes.Unavailable, "UNAVAILABLE", "the snapshot registry cannot be reached")
	answer := r.resumeOn(as(t, "acme"), id, "")
	eventually(t, 10*time.Second, "it resumes", func() bool { return r.get(t, id).GetState() == sandboxv1.State_STATE_RESUMING })
	m.registry.set(func() { m.registry.away = false })
	if err := <-answer; err != nil || r.get(t, id).GetHostId() == home {
		t.Fatalf("with the registry back: %v, it is on %s", err, r.get(t, id).GetHostId())
	}
}

func TestWhatADrainHasPausedSaysWhyUntilItRunsAgain(t *testing.T) {
	m := newMesh(t)
	r := m.replica("r1")
	sb := m.onHost(r, "host-a", 1)[0]
	m.cordon("host-b", true)
	if _, err := r.drain(t, as(t, "acme"), "host-a"); err != nil {
		t.Fatal(err)
	}
	if now := r.get(t, sb.GetId()); now.GetState() != stPaused || !strings.Contains(now.GetReason(), "host host-a was emptied, and it could not be resumed elsewhere: no host has room") {
		t.Errorf("it is %s: %s", now.GetState(), now.GetReason())
	}
	m.cordon("host-b", false)
	if err := <-r.resumeOn(as(t, "acme"), sb.GetId(), ""); err != nil {
		t.Fatal(err)
	}
	if now := r.get(t, sb.GetId()); now.GetReason() != "" {
		t.Errorf("it runs, and its reason is %q", now.GetReason())
	}
}
