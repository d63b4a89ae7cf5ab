package rpc_test

import (
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// apart are the hosts of the running sandboxes among some; the test fails where two share one.
func (r *replica) apart(t *testing.T, ids []string) map[string]string {
	t.Helper()
	at := map[string]string{}
	for _, id := range ids {
		sb := r.get(t, id)
		if sb.GetState() != sandboxv1.State_STATE_RUNNING {
			continue
		}
		if other := at[sb.GetHostId()]; other != "" {
			t.Errorf("%s and %s are both on %s", other, id, sb.GetHostId())
		}
		at[sb.GetHostId()] = id
	}
	return at
}

func TestSandboxesOfOneAntiAffinityNeverShareAHost(t *testing.T) {
	m := newMesh(t)
	replicas := []*replica{m.replica("r1"), m.replica("r2")}
	var mu sync.Mutex // guards ids
	var ids []string
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			res, err := replicas[i%2].CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "base", AntiAffinity: "db"})
			if err != nil {
				if status.Code(err) != codes.ResourceExhausted {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids = append(ids, res.GetSandbox().GetId())
		})
	}
	all.Wait()
	r := replicas[0]
	at := r.apart(t, ids)
	if len(at) != 2 {
		t.Fatalf("%d of 6 run on 2 hosts", len(at))
	}
	blind := func(yes bool) {
		m.scheduler.mu.Lock()
		m.scheduler.blind = yes
		m.scheduler.mu.Unlock()
	}
	blind(true)
	_, err := r.CreateSandbox(as(t, "acme"), &sandboxv1.CreateSandboxRequest{Template: "base", AntiAffinity: "db"})
	wantError(t, err, codes.ResourceExhausted, "ANTI_AFFINITY")
	blind(false)
	// Another name, and another tenant's same name, are no hindrance.
	for _, o := range []struct{ tenant, name string }{{"acme", "web"}, {"rival", "db"}} {
		if _, err := r.CreateSandbox(as(t, o.tenant), &sandboxv1.CreateSandboxRequest{Template: "base", AntiAffinity: o.name}); err != nil {
			t.Errorf("%s of %s: %v", o.name, o.tenant, err)
		}
	}
	// What is paused leaves its place to another, and finds none when it is to go on.
	paused := at["host-a"]
	r.pause(t, paused)
	third := r.create(t, &sandboxv1.CreateSandboxRequest{AntiAffinity: "db"})
	if third.GetHostId() != "host-a" {
		t.Errorf("the third is on %s", third.GetHostId())
	}
	_, err = r.ResumeSandbox(as(t, "acme"), &sandboxv1.ResumeSandboxRequest{SandboxId: paused})
	if status.Code(err) != codes.ResourceExhausted {
		t.Error(err)
	}
	r.apart(t, append(ids, third.GetId()))
}
