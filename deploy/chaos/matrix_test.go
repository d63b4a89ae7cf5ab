package chaos

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/coveyhq/covey/deploy/mesh"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
)

// A victim is what fails: a process and the site that it is at.
type victim struct {
	name, process, site string
}

var victims = []victim{
	{"the registry", "snapshotd", mesh.RegistrySite},
	{"the object store", "objects", mesh.ObjectsSite},
	{"Consul", "consul", mesh.ConsulSite},
	{"PostgreSQL", "postgres", mesh.DatabaseSite},
	{"the peer that has it", "hostagentd-" + source, source},
	{"the host that starts it", "hostagentd-" + target, target},
	{"the host that is drained", "hostagentd-" + third, third},
}

func (v victim) host() string {
	if strings.HasPrefix(v.site, "host-") {
		return v.site
	}
	return ""
}

// takesUploads tells whether nothing can become durable without the victim.
func (v victim) takesUploads() bool { return v.site == mesh.RegistrySite || v.site == mesh.ObjectsSite }

// failing is how long a service is away, or a host, which is not lost by then.
const failing = 2 * time.Second

// kill ends the victim; a host with all that runs there, until it counts as lost. It is there again when kill returns; meanwhile is called before.
func (v victim) kill(t *testing.T, ctx context.Context, meanwhile func()) {
	t.Helper()
	if v.host() == "" {
		if err := s.Mesh.Kill(ctx, v.process); err != nil {
			t.Fatal(err)
		}
		s.Cleanup(t, func(ctx context.Context) { s.Back(t, ctx, v.process) })
		pass(ctx, failing)
	} else {
		if err := s.Mesh.KillHost(ctx, v.host()); err != nil {
			t.Fatal(err)
		}
		s.Cleanup(t, func(ctx context.Context) { s.Back(t, ctx, v.process) })
		hostIs(t, ctx, v.host(), schedulerv1.HostState_HOST_STATE_LOST)
	}
	meanwhile()
	s.Back(t, ctx, v.process)
}

// cutOff cuts the victim off from everybody for a while, at the end of which meanwhile is called.
func (v victim) cutOff(t *testing.T, ctx context.Context, meanwhile func()) {
	t.Helper()
	if err := s.Mesh.CutOff(v.site); err != nil {
		t.Fatal(err)
	}
	pass(ctx, failing)
	meanwhile()
	if err := s.Mesh.Mend(ctx, v.site); err != nil {
		t.Fatal(err)
	}
}

// pass lets time pass in which something is away.
func pass(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func TestWhateverDiesOrIsCutOffEverySandboxIsRunningPausedOrLostWithTheReasonAndNoDurableByteIsMissing(t *testing.T) {
	for _, v := range victims {
		for _, f := range []struct {
			name string
			do   func(v victim, t *testing.T, ctx context.Context, meanwhile func())
			lost bool // What runs on a host is lost with it.
		}{{"dies", victim.kill, true}, {"is cut off", victim.cutOff, false}} {
			t.Run(v.name+" "+f.name, func(t *testing.T) {
				began := time.Now()
				ctx := s.Start(t, 2*time.Minute)
				a := prepare(t, ctx, strings.NewReplacer(" ", "-").Replace(strings.ToLower(v.name+f.name)))
				prepared := time.Now()
				a.begin(t, ctx)
				f.do(v, t, ctx, func() {
					if v.takesUploads() && s.Get(t, ctx, a.uploaded.ID).GetDurable() {
						t.Error("it is called durable while its bytes have nowhere to go")
					}
				})
				lost := ""
				if f.lost {
					lost = v.host()
				}
				a.end(t)
				done := time.Now()
				t.Run("is well", func(t *testing.T) { a.check(t, ctx, lost) })
				s.Intact(t, ctx)
				t.Logf("prepared in %s, disturbed for %s, checked in %s", prepared.Sub(began).Round(10*time.Millisecond), done.Sub(prepared).Round(10*time.Millisecond), time.Since(done).Round(10*time.Millisecond))
			})
		}
	}
}

// check looks after all four. lost is the host that was lost, "" if none was.
func (a *act) check(t *testing.T, ctx context.Context, lost string) {
	if !refusedClearly(a.resumeErr) || !refusedClearly(a.spawnErr) {
		t.Errorf("the calls answered %v and %v", a.resumeErr, a.spawnErr)
	}
	for _, host := range []string{source, target} {
		hostIs(t, ctx, host, schedulerv1.HostState_HOST_STATE_READY) // After Consul was away, only with the next check of each host.
	}
	t.Run("during an upload", func(t *testing.T) {
		t.Parallel()
		s.Durable(t, ctx, a.uploaded.ID)
		resumedSomewhere(t, ctx, a.uploaded, target)
	})
	t.Run("during a resume elsewhere", func(t *testing.T) {
		t.Parallel()
		well(t, ctx, a.resumed, lost == target)
	})
	t.Run("during a spawn from a template", func(t *testing.T) {
		t.Parallel()
		well(t, ctx, a.spawned, lost == target)
	})
	t.Run("during a drain", func(t *testing.T) {
		t.Parallel()
		s.Emptied(t, ctx, third)
		well(t, ctx, a.moved, lost == third)
	})
}
