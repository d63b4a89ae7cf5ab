package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/coveyhq/covey/deploy/meshtest"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// placed makes a small sandbox that any host takes, and that is on a certain one now.
func placed(t *testing.T, ctx context.Context, host string) *sandboxv1.Sandbox {
	t.Helper()
	cordon(t, ctx, otherHost(host), true)
	defer cordon(t, ctx, otherHost(host), false)
	sb := create(t, ctx, small())
	if sb.GetHostId() != host {
		t.Fatalf("it is on %s", sb.GetHostId())
	}
	return sb
}

func otherHost(host string) string {
	return map[string]string{"host-a": "host-b", "host-b": "host-a"}[host]
}

func TestATemplateMadeOnOneHostIsSpawnedOnAnother(t *testing.T) {
	ctx := start(t)
	src := create(t, ctx, on("host-a"))
	l := burden(t, ctx, src.GetId(), 4)
	template(t, ctx, src.GetId(), "hosts-template")
	q := on("host-b")
	q.Template, q.MemoryMb = "hosts-template", 0
	sb := create(t, ctx, q)
	if sb.GetHostId() != "host-b" {
		t.Fatalf("it is on %s", sb.GetHostId())
	}
	l.Of(sb.GetId()).Check(t, ctx)
	l.Check(t, ctx)
	var moved int64
	for _, p := range receipt(t, ctx, sb.GetId()).GetPageSources() {
		if p.GetSource() == "peer" || p.GetSource() == "registry" {
			moved += p.GetBytes()
		}
	}
	if moved == 0 {
		t.Error("its receipt says that nothing came from elsewhere")
	}
}

func TestASandboxPausedOnOneHostGoesOnOnAnother(t *testing.T) {
	ctx := start(t)
	sb := placed(t, ctx, "host-a")
	l := burden(t, ctx, sb.GetId(), 4)
	for _, host := range []string{"host-b", "host-a"} { // And back, with what both have changed.
		pause(t, ctx, sb.GetId())
		durable(t, ctx, sb.GetId())
		if got := resume(t, ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: sb.GetId(), HostId: host}); got.GetHostId() != host {
			t.Fatalf("it runs on %s", got.GetHostId())
		}
		l.Check(t, ctx)
		sh(t, ctx, sb.GetId(), "dd if=/dev/urandom of=/run/blob bs=1M count=4 conv=notrunc 2>/dev/null")
		l.Remember(t, ctx)
	}
}

func TestADrainedHostIsEmptyAndItsSandboxesGoOnElsewhere(t *testing.T) {
	ctx := start(t)
	a, b := placed(t, ctx, "host-a"), placed(t, ctx, "host-a")
	loads := []meshtest.Load{burden(t, ctx, a.GetId(), 2), burden(t, ctx, b.GetId(), 2)}
	bound := create(t, ctx, on("host-a"))
	t.Cleanup(func() { cordon(t, as(context.Background(), s.key), "host-a", false) })

	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.m.URL+"/v1/hosts/host-a/drain", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var last struct {
		Step             string
		Remaining, Total int
	}
	ends := map[string]string{}
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		var line struct {
			SandboxID string `json:"sandbox_id"`
			Reason    string
		}
		if err := errors.Join(json.Unmarshal(lines.Bytes(), &last), json.Unmarshal(lines.Bytes(), &line)); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		ends[line.SandboxID] = last.Step + line.Reason
	}
	if last.Step != "DRAIN_STEP_DONE" || last.Remaining != 0 || last.Total < 3 {
		t.Fatalf("it answers %s and ends with %+v", res.Status, last)
	}
	for _, l := range loads {
		if sb := get(t, ctx, l.ID); sb.GetHostId() != "host-b" || sb.GetState() != sandboxv1.State_STATE_RUNNING {
			t.Errorf("%s is %s on %s", l.ID, sb.GetState(), sb.GetHostId())
		}
		l.Check(t, ctx)
	}
	if sb := get(t, ctx, bound.GetId()); sb.GetState() != sandboxv1.State_STATE_PAUSED || !sb.GetDurable() || !strings.Contains(ends[bound.GetId()], "label") {
		t.Errorf("what only host-a may run is %s, durable %v: %s", sb.GetState(), sb.GetDurable(), ends[bound.GetId()])
	}
	for _, sb := range []*sandboxv1.Sandbox{a, b, bound} {
		if h := onHost(t, ctx, "host-a", sb.GetId()); h != nil && (h.GetState() == sandboxv1.State_STATE_RUNNING || h.GetPid() != 0) {
			t.Errorf("host-a still has %s", sb.GetId())
		}
	}
}

func TestWhereASnapshotCanBeRestoredIsSaidForEveryHostWithTheReason(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, on("host-b"))
	snap := template(t, ctx, sb.GetId(), "hosts-can")
	cordon(t, ctx, "host-b", true)
	defer cordon(t, ctx, "host-b", false)
	res, err := sandboxv1.NewOperationsServiceClient(s.conn).CanRestoreSnapshot(ctx, &sandboxv1.CanRestoreSnapshotRequest{SnapshotId: "hosts-can"})
	if err != nil {
		t.Fatal(err)
	}
	v := res.GetVerdicts()
	if res.GetSnapshotId() != snap.GetId() || !strings.Contains(res.GetDriver(), "/") || len(v) != 2 || !v[0].GetCan() || v[1].GetCan() ||
		!strings.Contains(strings.Join(v[1].GetReasons(), ";"), "cordoned") {
		t.Errorf("got %v", res)
	}
}

// tenant makes a key of another tenant.
func tenant(t *testing.T, ctx context.Context, id string, scopes ...string) context.Context {
	t.Helper()
	res, err := s.keys.CreateKey(ctx, &sandboxv1.CreateKeyRequest{Name: id, TenantId: id, Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	own, cancel := context.WithTimeout(as(context.Background(), res.GetSecret()), overrun*time.Minute)
	t.Cleanup(cancel)
	return own
}

func TestNoTenantReachesAnothersSnapshotsThoughItKnowsTheirIDs(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, small())
	snap := template(t, ctx, sb.GetId(), "hosts-secret")
	paused := create(t, ctx, small())
	pauseID := pause(t, ctx, paused.GetId()).GetSnapshotId()
	other := tenant(t, ctx, "other-tenant", "read", "write", "admin")
	ops := sandboxv1.NewOperationsServiceClient(s.conn)
	for _, id := range []string{snap.GetId(), "hosts-secret", pauseID} {
		for name, call := range map[string]func() error{
			"get": func() error {
				_, err := s.snapshots.GetSnapshot(other, &snapshotv1.GetSnapshotRequest{SnapshotId: id})
				return err
			},
			"explain": func() error {
				_, err := s.snapshots.ExplainSnapshot(other, &snapshotv1.ExplainSnapshotRequest{SnapshotId: id})
				return err
			},
			"rename": func() error {
				_, err := s.snapshots.RenameSnapshot(other, &snapshotv1.RenameSnapshotRequest{SnapshotId: id, Name: "stolen"})
				return err
			},
			"delete": func() error {
				_, err := s.snapshots.DeleteSnapshot(other, &snapshotv1.DeleteSnapshotRequest{SnapshotId: id})
				return err
			},
			"can-restore": func() error {
				_, err := ops.CanRestoreSnapshot(other, &sandboxv1.CanRestoreSnapshotRequest{SnapshotId: id})
				return err
			},
			"spawn": func() error {
				res, err := s.sandboxes.CreateSandbox(other, &sandboxv1.CreateSandboxRequest{Template: id})
				if err == nil {
					s.sandboxes.DeleteSandbox(other, &sandboxv1.DeleteSandboxRequest{SandboxId: res.GetSandbox().GetId()})
				}
				return err
			},
		} {
			t.Run(name+" "+strings.SplitN(id, "_", 2)[0], func(t *testing.T) { wantError(t, call(), codes.NotFound) })
		}
	}
	for name, call := range map[string]func() error{
		"resume": func() error {
			_, err := s.sandboxes.ResumeSandbox(other, &sandboxv1.ResumeSandboxRequest{SandboxId: paused.GetId()})
			return err
		},
		"fork": func() error {
			_, err := s.sandboxes.ForkSandbox(other, &sandboxv1.ForkSandboxRequest{SandboxId: paused.GetId()})
			return err
		},
		"exec": func() error {
			_, err := s.processes.Exec(other, &guestv1.ExecRequest{SandboxId: sb.GetId(), Cmd: "true"})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { wantError(t, call(), codes.NotFound) })
	}
	list, err := s.snapshots.ListSnapshots(other, &snapshotv1.ListSnapshotsRequest{AllKinds: true, PageSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, sn := range list.GetSnapshots() {
		if sn.GetId() == snap.GetId() || sn.GetId() == pauseID {
			t.Errorf("the other tenant's list has %s", sn.GetId())
		}
	}
	if _, err := s.snapshots.GetSnapshot(ctx, &snapshotv1.GetSnapshotRequest{SnapshotId: snap.GetId()}); err != nil {
		t.Errorf("its owner: %v", err)
	}
}

func TestEmptyingAHostNeedsTheAdminScope(t *testing.T) {
	ctx := start(t)
	_, err := drainHost(tenant(t, ctx, "default", "read", "write"), "host-a")
	wantError(t, err, codes.PermissionDenied, "admin")
	_, err = drainHost(ctx, "host-z")
	wantError(t, err, codes.NotFound, "host-z")
}
