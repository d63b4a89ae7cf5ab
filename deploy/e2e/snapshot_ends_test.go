package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

func TestWhatNothingNamesIsCollectedOnHostsAndInTheRegistry(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	sh(t, ctx, id, "head -c 3000000 /dev/urandom > /dev/shm/f")
	res, err := s.sandboxes.CreateSnapshot(ctx, &sandboxv1.CreateSnapshotRequest{SandboxId: id, Name: "garbage"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		sh(t, ctx, id, "head -c 3000000 /dev/urandom > /dev/shm/g")
		pause(t, ctx, id)
		again(t, ctx, id)
	}
	fork(t, ctx, id, 1)
	copies := fork(t, ctx, id, 1)
	pause(t, ctx, copies[0].GetId())
	eventually(t, 20*time.Second, "pause is in the registry", func() bool { return get(t, ctx, copies[0].GetId()).GetDurable() })
	list, err := s.sandboxes.ListSandboxes(ctx, &sandboxv1.ListSandboxesRequest{PageSize: 1000, States: []sandboxv1.State{sandboxv1.State_STATE_RUNNING, sandboxv1.State_STATE_PAUSED}})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range list.GetSandboxes() {
		if sb.GetId() == id || sb.GetParentId() == id {
			if _, err := s.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: sb.GetId()}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The template's own objects stay, and are of use.
	eventually(t, 20*time.Second, "only the template is left", func() bool { return slices.Equal(snapshotsOf(t, ctx, id), []string{res.GetSnapshot().GetId()}) })
	if n := len(glob(s.m.Dir + "/objects/snapshots/" + res.GetSnapshot().GetId() + "/*")); n < 3 {
		t.Errorf("the registry has %d objects of the template alone", n)
	}
	clone := create(t, ctx, &sandboxv1.CreateSandboxRequest{Template: "garbage"}).GetId()
	if got := sh(t, ctx, clone, "wc -c </dev/shm/f"); got != "3000000" {
		t.Errorf("a clone of the template answers %q", got)
	}
	if _, err := s.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: clone}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "template deleted", func() bool {
		_, err := s.snapshots.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: "garbage"})
		return err == nil
	})
	var left []string
	tick := func() bool {
		left = unnamed(t, ctx)
		return len(left) == 0
	}
	defer func() {
		if t.Failed() {
			t.Logf("named by nothing: %s", strings.Join(left, "\n  "))
		}
	}()
	eventually(t, 75*time.Second, "nothing is left that nothing names", tick)
}

// unnamed lists the files of hosts' stores and of the registry's that no snapshot names: of hosts' those that none of the host's does, and
// of hosts' snapshots those that the registry does not know, but images' own.
func unnamed(t *testing.T, ctx context.Context) []string {
	t.Helper()
	known := map[string]bool{}
	for _, snap := range allSnapshots(t, ctx) {
		known[snap.GetId()] = true
	}
	var left []string
	all := ""
	for _, host := range s.m.Hosts {
		named := ""
		for _, path := range slices.Concat(glob(store(host)+"/snapshots/*/manifest.json"), glob(store(host)+"/snapshots/*/squash/*.json"), glob(store(host)+"/images/*/image.json")) {
			raw, err := os.ReadFile(path)
			if err != nil {
				return []string{path + " was removed meanwhile"}
			}
			named += string(raw)
			id := filepath.Base(filepath.Dir(path))
			if strings.HasPrefix(id, "snap_") && !known[id] && !strings.Contains(string(raw), `"Kind":"image"`) {
				left = append(left, path)
			}
		}
		for _, path := range glob(store(host) + "/builds/*") {
			if id, _, _ := strings.Cut(filepath.Base(path), "."); !strings.Contains(named, id) {
				left = append(left, path)
			}
		}
		all += named
	}
	// The registry's paths are keys, and after an "@" what makes them unique.
	for _, path := range glob(s.m.Dir + "/objects/builds/*") {
		if id, _, _ := strings.Cut(filepath.Base(path), "@"); !strings.Contains(all, id) {
			left = append(left, path)
		}
	}
	for _, path := range glob(s.m.Dir + "/objects/snapshots/*/*") {
		if !known[filepath.Base(filepath.Dir(path))] {
			left = append(left, path)
		}
	}
	return left
}

func TestADiscardGivesSpaceBackAndIsNotSaved(t *testing.T) {
	const size = 24 << 20
	ctx := start(t)
	sb := create(t, ctx, small())
	overlay := func() int64 {
		m, err := agent(t, sb.GetHostId()).GetSandboxMetrics(ctx, &hostv1.GetSandboxMetricsRequest{SandboxId: sb.GetId()})
		if err != nil {
			t.Fatal(err)
		}
		return m.GetDiskOverlayBytes()
	}
	sh(t, ctx, sb.GetId(), fmt.Sprintf("head -c %d /dev/urandom > /root/f; sync", size))
	full := overlay()
	if full < size {
		t.Fatalf("the overlay has %d bytes after a write of %d", full, size)
	}
	sh(t, ctx, sb.GetId(), "rm /root/f; sync; fstrim /")
	if now := overlay(); now > full-size*9/10 {
		t.Errorf("the overlay has %d bytes after the discard, and had %d before", now, full)
	}
	paused := pause(t, ctx, sb.GetId())
	snap, err := s.snapshots.ExplainSnapshot(ctx, &snapshotv1.ExplainSnapshotRequest{SnapshotId: paused.GetSnapshotId()})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range snap.GetBuilds() {
		if b.GetKind() == "disk" && slices.Equal(b.GetNamedBy(), []string{paused.GetSnapshotId()}) && b.GetStoredBytes() > size/10 {
			t.Errorf("the pause saved %d bytes of a disk from which all was discarded", b.GetStoredBytes())
		}
	}
}

func TestAHostAgentThatDiesAmidAPauseOrAStartLosesNothing(t *testing.T) {
	ctx := start(t)
	made := create(t, ctx, small())
	id, host := made.GetId(), made.GetHostId()
	for i, wait := range []time.Duration{30 * time.Millisecond, 90 * time.Millisecond} {
		sh(t, ctx, id, fmt.Sprintf("echo %d > /root/n; echo %d > /dev/shm/n; head -c 3000000 /dev/urandom > /dev/shm/f", i, i))
		answer := make(chan error, 1)
		go func() {
			_, err := s.sandboxes.PauseSandbox(ctx, &sandboxv1.PauseSandboxRequest{SandboxId: id})
			answer <- err
		}()
		moment := time.NewTimer(wait)
		<-moment.C
		restart(t, ctx, host)
		if err := <-answer; err != nil {
			t.Errorf("the pause answers %v", err)
		}
		again(t, ctx, id)
		if got, want := sh(t, ctx, id, "cat /root/n /dev/shm/n"), fmt.Sprintf("%d\n%d", i, i); got != want {
			t.Errorf("killed after %s: it answers %q, want %q", wait, got, want)
		}
		host = get(t, ctx, id).GetHostId()
	}
	// While it runs.
	restart(t, ctx, host)
	if got := sh(t, ctx, id, "cat /dev/shm/n; echo more > /root/more; sync; echo 3 > /proc/sys/vm/drop_caches; cat /root/more"); got != "1\nmore" {
		t.Errorf("after the agent's death it answers %q", got)
	}
	for _, wait := range []time.Duration{50 * time.Millisecond, 250 * time.Millisecond} {
		type made struct {
			sb  *sandboxv1.Sandbox
			err error
		}
		answer := make(chan made, 1)
		go func() {
			r := small()
			r.Template, r.HostLabels, r.Metadata = "tiny", map[string]string{"host": host}, map[string]string{"amid": id}
			res, err := s.sandboxes.CreateSandbox(ctx, r)
			answer <- made{res.GetSandbox(), err}
		}()
		moment := time.NewTimer(wait)
		<-moment.C
		restart(t, ctx, host)
		a := <-answer
		if a.err == nil {
			remove(t, a.sb.GetId())
			sh(t, ctx, a.sb.GetId(), "true")
		} else if c := status.Code(a.err); c != codes.Unavailable && c != codes.ResourceExhausted && c != codes.Aborted {
			t.Errorf("a creation amid the agent's death answers %v", a.err)
		}
	}
	list, err := s.sandboxes.ListSandboxes(ctx, &sandboxv1.ListSandboxesRequest{Metadata: map[string]string{"amid": id}})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range list.GetSandboxes() {
		switch sb.GetState() {
		case sandboxv1.State_STATE_RUNNING:
		case sandboxv1.State_STATE_FAILED:
			eventually(t, 10*time.Second, "nothing left of what was half made", func() bool { return len(holdingsOf(sb.GetId())) == 0 })
		default:
			t.Errorf("half made: %v", sb)
		}
	}
}
