package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

func resume(t *testing.T, ctx context.Context, r *sandboxv1.ResumeSandboxRequest) *sandboxv1.Sandbox {
	t.Helper()
	res, err := s.sandboxes.ResumeSandbox(ctx, r)
	if err != nil || res.GetSandbox().GetState() != sandboxv1.State_STATE_RUNNING {
		t.Fatalf("resume: %v, %v", res, err)
	}
	return res.GetSandbox()
}

func again(t *testing.T, ctx context.Context, id string) *sandboxv1.Sandbox {
	t.Helper()
	return resume(t, ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id})
}

func fork(t *testing.T, ctx context.Context, id string, n uint32) []*sandboxv1.Sandbox {
	t.Helper()
	res, err := s.sandboxes.ForkSandbox(ctx, &sandboxv1.ForkSandboxRequest{SandboxId: id, Count: n})
	if err != nil {
		t.Fatalf("fork: %v", err)
	}
	for _, c := range res.GetSandboxes() {
		remove(t, c.GetId())
		if c.GetState() != sandboxv1.State_STATE_RUNNING || c.GetParentId() != id {
			t.Errorf("a copy of %s is %v", id, c)
		}
	}
	return res.GetSandboxes()
}

func TestAPausedSandboxGoesOnWhereItWas(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	sh(t, ctx, id, "echo disk > /root/f; echo memory > /dev/shm/f; (while :; do echo x >> /dev/shm/beat; sleep 0.1; done) >/dev/null 2>&1 & true")
	paused := pause(t, ctx, id)
	if paused.GetSnapshotId() == "" || len(holdingsOf(id)) > 0 {
		t.Errorf("it is %v, and holds %v", paused, holdingsOf(id))
	}
	if p := pause(t, ctx, id); p.GetSnapshotId() != paused.GetSnapshotId() {
		t.Errorf("a paused one that is paused again is %v", p)
	}
	_, err := s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "true"})
	wantError(t, err, codes.FailedPrecondition, "PAUSED")
	again(t, ctx, id)
	again(t, ctx, id) // a running one is answered as it is
	if got := sh(t, ctx, id, "cat /root/f /dev/shm/f; a=$(wc -c </dev/shm/beat); for i in $(seq 100); do b=$(wc -c </dev/shm/beat); [ $b -gt $a ] && break; sleep 0.2; done; [ $b -gt $a ] && echo beats"); got != "disk\nmemory\nbeats" {
		t.Errorf("it answers %q", got)
	}
}

func TestPausesAtTheSameTimeAreOneAndSoAreResumes(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	for range 2 {
		snapshots := atOnce(4, func() (string, error) {
			r, err := s.sandboxes.PauseSandbox(ctx, &sandboxv1.PauseSandboxRequest{SandboxId: id})
			return r.GetSandbox().GetState().String() + " " + r.GetSandbox().GetSnapshotId(), err
		})
		if all := slices.Compact(snapshots); len(all) != 1 || !strings.HasPrefix(all[0], "STATE_PAUSED snap_") {
			t.Fatalf("four pauses at once answered %q", snapshots)
		}
		states := atOnce(4, func() (string, error) {
			r, err := s.sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id})
			return r.GetSandbox().GetState().String(), err
		})
		if all := slices.Compact(states); len(all) != 1 || all[0] != "STATE_RUNNING" {
			t.Fatalf("four resumes at once answered %q", states)
		}
	}
	sh(t, ctx, id, "true")
}

// atOnce calls n times at the same time and returns all answers; errors are answers too.
func atOnce(n int, call func() (string, error)) []string {
	answers := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			got, err := call()
			if err != nil {
				got = err.Error()
			}
			answers[i] = got
		})
	}
	wg.Wait()
	return answers
}

func TestASandboxDeletedAmidAPauseOrAResumeLeavesNothing(t *testing.T) {
	ctx := start(t)
	for i, wait := range []time.Duration{0, 20 * time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond} {
		id := create(t, ctx, small()).GetId()
		verb, call := "pause", func() error {
			_, err := s.sandboxes.PauseSandbox(ctx, &sandboxv1.PauseSandboxRequest{SandboxId: id})
			return err
		}
		if i%2 == 1 {
			pause(t, ctx, id)
			verb, call = "resume", func() error {
				_, err := s.sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id})
				return err
			}
		}
		answer := make(chan error)
		go func() { answer <- call() }()
		moment := time.NewTimer(wait)
		<-moment.C
		res, err := s.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: id})
		if err != nil || res.GetSandbox().GetState() != sandboxv1.State_STATE_STOPPED {
			t.Errorf("deleted %s after the %s began: %v, %v", wait, verb, res, err)
		}
		if err := <-answer; err != nil && status.Code(err) != codes.Aborted && status.Code(err) != codes.FailedPrecondition {
			t.Errorf("the %s answers %v", verb, err)
		}
		eventually(t, 10*time.Second, "nothing left after a delete amid a "+verb, func() bool {
			return len(holdingsOf(id)) == 0 && len(snapshotsOf(t, ctx, id)) == 0 && len(savedFilesOf(id)) == 0
		})
	}
}

// snapshotsOf are the snapshots in the registry that were taken from a sandbox.
func snapshotsOf(t *testing.T, ctx context.Context, id string) []string {
	t.Helper()
	var found []string
	for _, snap := range allSnapshots(t, ctx) {
		if snap.GetSourceSandboxId() == id {
			found = append(found, snap.GetId())
		}
	}
	return found
}

func allSnapshots(t *testing.T, ctx context.Context) []*snapshotv1.Snapshot {
	t.Helper()
	res, err := s.snapshots.ListSnapshots(ctx, &snapshotv1.ListSnapshotsRequest{AllKinds: true, PageSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetSnapshots()
}

func TestAForkOfAPausedSandboxStartsFromItsSavedState(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	sh(t, ctx, id, "echo disk > /root/f; echo memory > /dev/shm/f")
	pause(t, ctx, id)
	for _, c := range fork(t, ctx, id, 2) {
		if got := sh(t, ctx, c.GetId(), "cat /root/f /dev/shm/f; echo changed > /root/f; echo changed > /dev/shm/f"); got != "disk\nmemory" {
			t.Errorf("a copy answers %q", got)
		}
	}
	if sb := get(t, ctx, id); sb.GetState() != sandboxv1.State_STATE_PAUSED {
		t.Errorf("the source is %v", sb)
	}
	again(t, ctx, id)
	if got := sh(t, ctx, id, "cat /root/f /dev/shm/f"); got != "disk\nmemory" {
		t.Errorf("the source answers %q", got)
	}
}

func TestATemplateLocksVCPUsAndMemoryAndItsSourceKeepsRunning(t *testing.T) {
	ctx := start(t)
	source := create(t, ctx, small()).GetId()
	sh(t, ctx, source, "echo made > /root/f; (while :; do echo x >> /dev/shm/beat; sleep 0.1; done) >/dev/null 2>&1 & true")
	snap := template(t, ctx, source, "locked")
	if snap.GetVcpus() != 1 || snap.GetMemoryMb() != 128 || snap.GetKind() != snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE || snap.GetUniqueBytes() == 0 {
		t.Errorf("the template is %v", snap)
	}
	if got := sh(t, ctx, source, "a=$(wc -c </dev/shm/beat); for i in $(seq 100); do b=$(wc -c </dev/shm/beat); [ $b -gt $a ] && break; sleep 0.2; done; [ $b -gt $a ] && echo beats"); got != "beats" {
		t.Errorf("the source answers %q", got)
	}
	for field, r := range map[string]*sandboxv1.CreateSandboxRequest{
		"vcpus":     {Template: "locked", Vcpus: 2},
		"memory_mb": {Template: "locked", MemoryMb: 256},
	} {
		_, err := s.sandboxes.CreateSandbox(ctx, r)
		has := map[string]string{"vcpus": "1", "memory_mb": "128"}[field]
		wantError(t, err, codes.InvalidArgument, field, has)
	}
	_, err := s.sandboxes.CreateSnapshot(ctx, &sandboxv1.CreateSnapshotRequest{SandboxId: source, Name: "locked"})
	wantError(t, err, codes.AlreadyExists, "locked")
	clone := create(t, ctx, &sandboxv1.CreateSandboxRequest{Template: "locked"})
	if clone.GetVcpus() != 1 || clone.GetMemoryMb() != 128 {
		t.Errorf("the clone is %v", clone)
	}
	if got := sh(t, ctx, clone.GetId(), "cat /root/f; a=$(wc -c </dev/shm/beat); for i in $(seq 100); do b=$(wc -c </dev/shm/beat); [ $b -gt $a ] && break; sleep 0.2; done; [ $b -gt $a ] && echo beats"); got != "made\nbeats" {
		t.Errorf("the clone answers %q", got)
	}
}

func TestATemplateCanBeMadeOfAPausedSandbox(t *testing.T) {
	ctx := start(t)
	source := create(t, ctx, small()).GetId()
	sh(t, ctx, source, "echo made > /dev/shm/f")
	pause(t, ctx, source)
	template(t, ctx, source, "of-a-paused")
	if sb := get(t, ctx, source); sb.GetState() != sandboxv1.State_STATE_PAUSED {
		t.Errorf("the source is %v", sb)
	}
	clone := create(t, ctx, &sandboxv1.CreateSandboxRequest{Template: "of-a-paused"})
	if got := sh(t, ctx, clone.GetId(), "cat /dev/shm/f"); got != "made" {
		t.Errorf("the clone answers %q", got)
	}
}

func TestSnapshotsAreListedRenamedExplainedAndKeptWhileInUse(t *testing.T) {
	ctx := start(t)
	source := create(t, ctx, small()).GetId()
	first := template(t, ctx, source, "first")
	clone := create(t, ctx, &sandboxv1.CreateSandboxRequest{Template: "first"}).GetId()
	sh(t, ctx, clone, "echo more > /dev/shm/f")
	second := template(t, ctx, clone, "second")

	_, err := s.snapshots.RenameSnapshot(ctx, &snapshotv1.RenameSnapshotRequest{SnapshotId: "second", Name: "first"})
	wantError(t, err, codes.AlreadyExists, "first")
	if _, err := s.snapshots.RenameSnapshot(ctx, &snapshotv1.RenameSnapshotRequest{SnapshotId: "second", Name: "third"}); err != nil {
		t.Fatal(err)
	}
	_, err = s.snapshots.GetSnapshot(ctx, &snapshotv1.GetSnapshotRequest{SnapshotId: "second"})
	wantError(t, err, codes.NotFound, "second")
	list, err := s.snapshots.ListSnapshots(ctx, &snapshotv1.ListSnapshotsRequest{PageSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*snapshotv1.Snapshot{}
	for _, snap := range list.GetSnapshots() {
		found[snap.GetName()] = snap
	}
	third := found["third"]
	if found["first"].GetId() != first.GetId() || third.GetId() != second.GetId() {
		t.Fatalf("the list is %v", list)
	}
	if third.GetParentId() != first.GetId() || third.GetGeneration() != found["first"].GetGeneration()+1 || third.GetUniqueBytes() == 0 || third.GetSharedBytes() == 0 {
		t.Errorf("the second template is listed as %v", third)
	}

	_, err = s.snapshots.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: "first"})
	wantError(t, err, codes.FailedPrecondition, clone)
	why, err := s.snapshots.ExplainSnapshot(ctx, &snapshotv1.ExplainSnapshotRequest{SnapshotId: "first"})
	if err != nil || len(why.GetPinnedBy()) != 1 || !strings.Contains(why.GetPinnedBy()[0], clone) {
		t.Errorf("why: %v, %v", why.GetPinnedBy(), err)
	}
	shared := slices.ContainsFunc(why.GetBuilds(), func(b *snapshotv1.BuildInfo) bool {
		return slices.Contains(b.GetNamedBy(), first.GetId()) && slices.Contains(b.GetNamedBy(), second.GetId())
	})
	if !shared {
		t.Errorf("no build is shared by the two: %v", why.GetBuilds())
	}
	if why, err = s.snapshots.ExplainSnapshot(ctx, &snapshotv1.ExplainSnapshotRequest{SnapshotId: "third"}); err != nil || !slices.Contains(why.GetLineage(), first.GetId()) {
		t.Errorf("lineage: %v, %v", why.GetLineage(), err)
	}

	// Once the clone is gone the first template can go, and the second lives on what it shared with it.
	if _, err := s.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: clone}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "first template deleted", func() bool {
		_, err = s.snapshots.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: "first"})
		return err == nil
	})
	heir := create(t, ctx, &sandboxv1.CreateSandboxRequest{Template: "third"}).GetId()
	if got := sh(t, ctx, heir, "cat /dev/shm/f"); got != "more" {
		t.Errorf("a clone of the second template answers %q", got)
	}
}

// scribble has every sandbox fill two files, in memory and on disk, with its own name, all at the same time.
func scribble(t *testing.T, ctx context.Context, ids []string) {
	t.Helper()
	answers := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			script := fmt.Sprintf(`for i in $(seq 0 15); do for f in /dev/shm/area /root/area; do printf '%%-4096s' %s | dd of=$f bs=4096 seek=$i conv=notrunc 2>/dev/null; done; done; sync`, id)
			res, err := s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "/bin/sh", Args: []string{"-c", script}, User: "root"})
			if err == nil && res.GetExitCode() != 0 {
				err = fmt.Errorf("exit code %d: %s", res.GetExitCode(), res.GetStderr())
			}
			answers[i] = err
		})
	}
	wg.Wait()
	for i, err := range answers {
		if err != nil {
			t.Fatalf("%s: %v", ids[i], err)
		}
	}
}

// foreign counts the bytes in a sandbox's two files that are not of the given name.
func foreign(t *testing.T, ctx context.Context, id, name string) string {
	t.Helper()
	return sh(t, ctx, id, fmt.Sprintf("echo 3 > /proc/sys/vm/drop_caches; for f in /dev/shm/area /root/area; do wc -c <$f; tr -d ' ' <$f | sed 's/%s//g' | wc -c; done | xargs echo", name))
}

func TestAClonesWritesNeverAppearElsewhere(t *testing.T) {
	const clean = "65536 0 65536 0"
	ctx := start(t)
	parent := create(t, ctx, small()).GetId()
	scribble(t, ctx, []string{parent})
	template(t, ctx, parent, "isolation")
	all := []string{parent}
	for range 2 {
		all = append(all, create(t, ctx, &sandboxv1.CreateSandboxRequest{Template: "isolation"}).GetId())
	}
	for _, c := range fork(t, ctx, parent, 2) {
		all = append(all, c.GetId())
	}
	for _, id := range all {
		if got := foreign(t, ctx, id, parent); got != clean {
			t.Errorf("%s began with %q of foreign bytes", id, got)
		}
	}
	scribble(t, ctx, all[1:])
	for i, id := range all {
		if got := foreign(t, ctx, id, id); got != clean {
			t.Errorf("%s (number %d) has %q of foreign bytes", id, i, got)
		}
	}
	late := create(t, ctx, &sandboxv1.CreateSandboxRequest{Template: "isolation"}).GetId()
	if got := foreign(t, ctx, late, parent); got != clean {
		t.Errorf("a clone made afterwards began with %q of foreign bytes", got)
	}
}
