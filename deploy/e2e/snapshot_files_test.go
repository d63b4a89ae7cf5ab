package e2e

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// store is a host's snapshot directory.
func store(host string) string { return filepath.Join(s.m.Dir, host, "snapshots") }

// savedFilesOf are the directories of snapshots on the hosts whose manifests name a sandbox.
func savedFilesOf(id string) []string {
	var found []string
	for _, path := range glob(s.m.Dir + "/host-*/snapshots/snapshots/*/manifest.json") {
		// One that is removed meanwhile names nobody.
		if raw, _ := os.ReadFile(path); strings.Contains(string(raw), id) {
			found = append(found, path)
		}
	}
	return found
}

// restart kills a host agent, starts it again and waits until the mesh has noticed.
func restart(t *testing.T, ctx context.Context, host string) {
	t.Helper()
	if err := s.m.Kill(ctx, "hostagentd-"+host); err != nil {
		t.Fatal(err)
	}
	revive(t, ctx, host)
}

// damage changes a file and returns how to repair it.
func damage(t *testing.T, path string, change func([]byte) []byte) (repair func()) {
	t.Helper()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(change(bytes.Clone(whole)))
	return func() { write(whole) }
}

func flip(b []byte) []byte {
	b[len(b)/2] ^= 0x10
	return b
}

func truncate(b []byte) []byte { return b[:len(b)/2] }

func extend(b []byte) []byte { return append(b, make([]byte, 4096)...) }

// flipEverywhere leaves no part of a build whole but its index at the end.
func flipEverywhere(b []byte) []byte {
	for i := 512; i < len(b)*9/10; i += 512 {
		b[i] ^= 0x10
	}
	return b
}

// ruin damages a part of a snapshot, named as the registry names it, on its host and in the registry: nothing can heal it until it is repaired.
func ruin(t *testing.T, host, key string, change func([]byte) []byte) (repair func()) {
	t.Helper()
	repairs := []func(){damage(t, filepath.Join(store(host), key), change)}
	err := filepath.WalkDir(filepath.Join(s.m.Dir, "objects"), func(path string, d fs.DirEntry, err error) error {
		// Another object that goes meanwhile is none of those looked for.
		if err == nil && !d.IsDir() && strings.Contains(path, key) {
			repair := damage(t, path, flipAll)
			repairs = append(repairs, func() {
				if _, err := os.Stat(path); err == nil { // Else it was collected, as nothing names it any more.
					repair()
				}
			})
		}
		return nil
	})
	if err != nil || len(repairs) == 1 {
		t.Fatalf("the registry does not have %s: %v", key, err)
	}
	return func() {
		for _, r := range repairs {
			r()
		}
	}
}

// flipAll leaves nothing whole.
func flipAll(b []byte) []byte {
	for i := range b {
		b[i] ^= 0x10
	}
	return b
}

const (
	fillShm = "head -c 1000000 /dev/urandom > /dev/shm/f; head -c 1000000 /dev/urandom > /root/f; sync; cat /dev/shm/f /root/f | sha256sum > /dev/shm/sum"
	isWhole = "cat /dev/shm/f /root/f | sha256sum | diff - /dev/shm/sum && echo whole"
)

func TestASnapshotThatIsDamagedEverywhereIsRefusedByNameAndStaysUntilItIsRepaired(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	sh(t, ctx, id, fillShm)
	paused := pause(t, ctx, id)
	durable(t, ctx, id)
	host := paused.GetHostId()
	// No memory of it may be left in the page cache: what is damaged must be read.
	restart(t, ctx, host)
	files := "snapshots/" + paused.GetSnapshotId() + "/"
	memory, disk := ownBuild(t, ctx, paused.GetSnapshotId(), "memory"), ownBuild(t, ctx, paused.GetSnapshotId(), "disk")
	here := &sandboxv1.ResumeSandboxRequest{SandboxId: id, HostId: host, RestorePolicy: sandboxv1.RestorePolicy_RESTORE_POLICY_MEMORY_REQUIRED}
	for _, c := range []struct {
		what, key, named string
		change           func([]byte) []byte
	}{
		{"state flipped", files + "state", "state", flip},
		{"state truncated", files + "state", "state", truncate},
		{"state too long", files + "state", "state", extend},
		{"memory header flipped", files + "memory.hdr", "memory.hdr", flip},
		{"memory header truncated", files + "memory.hdr", "memory.hdr", truncate},
		{"disk header flipped", files + "disk.hdr", "disk.hdr", flip},
		{"disk header too long", files + "disk.hdr", "disk.hdr", extend},
		{"memory build truncated", "builds/" + memory, memory, truncate},
		{"memory build flipped", "builds/" + memory, memory, flipEverywhere},
		{"disk build truncated", "builds/" + disk, disk, truncate},
	} {
		t.Run(c.what, func(t *testing.T) {
			defer ruin(t, host, c.key, c.change)()
			_, err := s.sandboxes.ResumeSandbox(ctx, here)
			wantError(t, err, codes.DataLoss, c.named)
			if sb := get(t, ctx, id); sb.GetState() != sandboxv1.State_STATE_PAUSED || sb.GetSnapshotId() != paused.GetSnapshotId() {
				t.Errorf("it is %v", sb)
			}
			if left := holdingsOf(id); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	resume(t, ctx, here)
	if got := sh(t, ctx, id, isWhole); got != "whole" {
		t.Errorf("after the repair it answers %q", got)
	}
}

func TestADurableSnapshotThatIsDamagedOnItsHostHealsThere(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	sh(t, ctx, id, fillShm)
	host := get(t, ctx, id).GetHostId()
	for _, round := range []map[string]func([]byte) []byte{
		{"state": flip, "memory.hdr": truncate, "disk.hdr": extend, "manifest.json": flip},
		{"memory": flipEverywhere, "disk": truncate},
		{"memory": truncate},
	} {
		snapshot := pause(t, ctx, id).GetSnapshotId()
		durable(t, ctx, id)
		restart(t, ctx, host)
		before := map[string][]byte{}
		for part, change := range round {
			path := filepath.Join(store(host), "snapshots", snapshot, part)
			if part == "memory" || part == "disk" {
				path = filepath.Join(store(host), "builds", ownBuild(t, ctx, snapshot, part))
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// The build may be the image's template's, of which the registry has not heard: others need it.
			repair := damage(t, path, change)
			defer func() {
				if t.Failed() {
					repair()
				}
			}()
			if part != "manifest.json" {
				before[path] = raw
			}
		}
		resume(t, ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id, HostId: host, RestorePolicy: sandboxv1.RestorePolicy_RESTORE_POLICY_MEMORY_REQUIRED})
		if got := sh(t, ctx, id, isWhole); got != "whole" {
			t.Errorf("healed it answers %q", got)
		}
		for path, raw := range before {
			eventually(t, 30*time.Second, path+" is what it was", func() bool {
				now, err := os.ReadFile(path)
				return err == nil && bytes.Equal(now, raw)
			})
		}
	}
}

func TestMemoryThatCannotBeReadEndsInABootOrInAFailureThatSaysWhy(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, small())
	id, host := sb.GetId(), sb.GetHostId()
	here := &sandboxv1.ResumeSandboxRequest{SandboxId: id, HostId: host}
	sh(t, ctx, id, "echo disk > /root/f; head -c 6000000 /dev/urandom > /dev/shm/f")
	first := pause(t, ctx, id).GetSnapshotId()
	durable(t, ctx, id)
	build := ownBuild(t, ctx, first, "memory")
	// A life in which nobody needs the file, so that it is not of what the next one begins with.
	resume(t, ctx, here)
	pause(t, ctx, id)
	restart(t, ctx, host)
	resume(t, ctx, here)
	repair := ruin(t, host, "builds/"+build, flipEverywhere)
	if _, err := s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "md5sum", Args: []string{"/dev/shm/f"}}); err == nil {
		t.Error("a file in damaged memory can be read")
	}
	eventually(t, 10*time.Second, "sandbox FAILED", func() bool { return get(t, ctx, id).GetState() == sandboxv1.State_STATE_FAILED })
	if reason := get(t, ctx, id).GetReason(); !strings.Contains(reason, build) {
		t.Errorf("the reason is %q", reason)
	}
	repair()

	sb = create(t, ctx, &sandboxv1.CreateSandboxRequest{MemoryMb: 128, HostLabels: map[string]string{"host": host}})
	id = sb.GetId()
	sh(t, ctx, id, "echo disk > /root/f; echo memory > /dev/shm/f")
	first = pause(t, ctx, id).GetSnapshotId()
	durable(t, ctx, id)
	build = ownBuild(t, ctx, first, "memory")
	restart(t, ctx, host)
	// The build may be the image's template's, of which the registry has not heard: others need it.
	defer ruin(t, host, "builds/"+build, flipEverywhere)()
	resume(t, ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id, HostId: host, RestorePolicy: sandboxv1.RestorePolicy_RESTORE_POLICY_PREFER_MEMORY})
	if r := receipt(t, ctx, id); r.GetKind() != sandboxv1.StartKind_START_KIND_DISK_BOOT || !strings.Contains(r.GetFallbackReason(), build) {
		t.Errorf("the receipt says %s because %q", r.GetKind(), r.GetFallbackReason())
	}
	if got := sh(t, ctx, id, "cat /root/f; ls /dev/shm"); got != "disk" {
		t.Errorf("booted from its disk it answers %q", got)
	}
}

// ownBuild is the build of a kind, "memory" or "disk", that only this snapshot names.
func ownBuild(t *testing.T, ctx context.Context, snapshot, kind string) string {
	t.Helper()
	why, err := s.snapshots.ExplainSnapshot(ctx, &snapshotv1.ExplainSnapshotRequest{SnapshotId: snapshot})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range why.GetBuilds() {
		if b.GetKind() == kind && slices.Equal(b.GetNamedBy(), []string{snapshot}) {
			return b.GetId()
		}
	}
	t.Fatalf("%s has no %s build of its own: %v", snapshot, kind, why.GetBuilds())
	return ""
}
