package e2e

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

func receipt(t *testing.T, ctx context.Context, id string) *sandboxv1.RestoreReceipt {
	t.Helper()
	res, err := s.sandboxes.GetRestoreReceipt(ctx, &sandboxv1.GetRestoreReceiptRequest{SandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetReceipt()
}

// checkReceipt looks for what every receipt of a restored sandbox has.
func checkReceipt(t *testing.T, r *sandboxv1.RestoreReceipt, id string, kind sandboxv1.StartKind) {
	t.Helper()
	var sum int64
	for _, p := range r.GetPhases() {
		sum += p.GetDurationUsec()
	}
	if len(r.GetPhases()) < 5 || sum != r.GetTotalUsec() || sum == 0 {
		t.Errorf("the phases sum to %d us, the total is %d us: %v", sum, r.GetTotalUsec(), r.GetPhases())
	}
	if r.GetSandboxId() != id || r.GetKind() != kind || r.GetRestoreId() == "" || r.GetSnapshotId() == "" || r.GetHostId() == "" || r.GetVmm() == "" ||
		len(r.GetMemoryBuilds()) == 0 || len(r.GetDiskBuilds()) == 0 || !r.GetAttestation().GetEntropyReseeded() {
		t.Errorf("the receipt of a %s is %v", kind, r)
	}
	var pages int64
	for _, src := range r.GetPageSources() {
		pages += src.GetPages()
	}
	if pages == 0 {
		t.Errorf("no page came from anywhere: %v", r.GetPageSources())
	}
}

func TestEveryRestoreLeavesAReceiptThatAddsUp(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	r := receipt(t, ctx, id)
	checkReceipt(t, r, id, sandboxv1.StartKind_START_KIND_SPAWN)
	if r.GetFirstExecUsec() != 0 {
		t.Errorf("a first exec after %d us, and there was none", r.GetFirstExecUsec())
	}
	sh(t, ctx, id, "true")
	if r := receipt(t, ctx, id); r.GetFirstExecUsec() <= r.GetTotalUsec() {
		t.Errorf("the first exec was answered after %d us, the start took %d us", r.GetFirstExecUsec(), r.GetTotalUsec())
	}

	paused := pause(t, ctx, id)
	if r := receipt(t, ctx, id); r.GetFirstExecUsec() == 0 || r.GetKind() != sandboxv1.StartKind_START_KIND_SPAWN {
		t.Errorf("while it is paused the receipt of its last start is %v", r)
	}
	again(t, ctx, id)
	resumed := receipt(t, ctx, id)
	checkReceipt(t, resumed, id, sandboxv1.StartKind_START_KIND_RESUME)
	if resumed.GetSnapshotId() != paused.GetSnapshotId() || resumed.GetGeneration() != r.GetGeneration()+1 || resumed.GetRestoreId() == r.GetRestoreId() {
		t.Errorf("resumed: %v\nspawned: %v", resumed, r)
	}
	for _, b := range resumed.GetMemoryBuilds() {
		if len(b) != 32 {
			t.Errorf("build id %q", b)
		}
	}
	c := fork(t, ctx, id, 1)[0].GetId()
	checkReceipt(t, receipt(t, ctx, c), c, sandboxv1.StartKind_START_KIND_FORK)
	pause(t, ctx, c)
	checkReceipt(t, receipt(t, ctx, c), c, sandboxv1.StartKind_START_KIND_FORK)
}

func TestClonesDifferInEntropyAndIdentityAndAResumedSandboxIsTheSame(t *testing.T) {
	ctx := start(t)
	source := create(t, ctx, small()).GetId()
	template(t, ctx, source, "identity")
	ids := []string{source}
	for range 2 {
		ids = append(ids, create(t, ctx, &sandboxv1.CreateSandboxRequest{Template: "identity"}).GetId())
	}
	for _, c := range fork(t, ctx, source, 2) {
		ids = append(ids, c.GetId())
	}
	const who = "cat /etc/machine-id; hostname; cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | hexdump -v -e '1/1 \"%02x\"'"
	seen := map[string]string{}
	for _, id := range ids {
		said := strings.Fields(sh(t, ctx, id, who))
		if len(said) != 4 {
			t.Fatalf("%s says %q", id, said)
		}
		for _, word := range said {
			if other := seen[word]; other != "" {
				t.Errorf("%s and %s both have %s", id, other, word)
			}
			seen[word] = id
		}
		if a := receipt(t, ctx, id).GetAttestation(); a.GetMachineId() != said[0] || a.GetHostname() != said[1] {
			t.Errorf("%s says %q, its receipt %v", id, said, a)
		}
	}
	before := sh(t, ctx, source, "cat /etc/machine-id; hostname")
	pause(t, ctx, source)
	again(t, ctx, source)
	if after := sh(t, ctx, source, "cat /etc/machine-id; hostname"); after != before {
		t.Errorf("it was %q, resumed it is %q", before, after)
	}
	// Its disk does not have its names.
	pause(t, ctx, source)
	resume(t, ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: source, RestorePolicy: sandboxv1.RestorePolicy_RESTORE_POLICY_DISK_ONLY})
	if after := sh(t, ctx, source, "cat /etc/machine-id; hostname"); after != before {
		t.Errorf("it was %q, booted from its disk it is %q", before, after)
	}
}

func TestTheClockIsRightAfterAPause(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	const slept = 3 * time.Second
	pause(t, ctx, id)
	passes := time.NewTimer(slept)
	<-passes.C
	again(t, ctx, id)
	from := time.Now().Unix()
	said, err := strconv.ParseInt(sh(t, ctx, id, "date +%s"), 10, 64)
	// As late as the guest heard of it, which was within the restore.
	late := receipt(t, ctx, id).GetTotalUsec() / 1e6
	if err != nil || said < from-1-late || said > time.Now().Unix()+1 {
		t.Errorf("the guest's clock says %d, the host's %d to %d (%v)", said, from, time.Now().Unix(), err)
	}
	if step := time.Duration(receipt(t, ctx, id).GetAttestation().GetClockStepNs()); step < slept-time.Duration(1+late)*time.Second {
		t.Errorf("after a pause of %s the clock was stepped by %s", slept, step)
	}
}

func TestAnExecStreamThatIsOpenWhenItsSandboxIsPausedEndsAndSaysWhy(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	st, process := stream(t, ctx, id, &guestv1.ProcessStart{Cmd: "/bin/sh", Args: []string{"-c", "while :; do echo x; sleep 0.2; done"}, Detached: true})
	ended := make(chan error, 1)
	go func() {
		_, err := drain(st, func(*guestv1.Output) {})
		ended <- err
	}()
	pause(t, ctx, id)
	select {
	case err := <-ended:
		if c := status.Code(err); c != codes.Unavailable && c != codes.Aborted && c != codes.FailedPrecondition {
			t.Errorf("the stream ended with %v", err)
		}
		if !strings.Contains(status.Convert(err).Message(), id) {
			t.Errorf("the end of the stream does not say which sandbox: %v", err)
		}
	case <-time.After(overrun * 10 * time.Second):
		t.Fatal("the stream is still open")
	}
	again(t, ctx, id)
	if !running(t, ctx, id, process) {
		t.Error("the detached process does not run any more")
	}
}

func TestTheRestorePolicySaysWhatBecomesOfMemoryThatCannotBeRestored(t *testing.T) {
	ctx := start(t)
	id := create(t, ctx, small()).GetId()
	sh(t, ctx, id, "echo disk > /root/f; echo memory > /dev/shm/f")
	paused := pause(t, ctx, id)
	durable(t, ctx, id)
	policy := func(p sandboxv1.RestorePolicy) *sandboxv1.ResumeSandboxRequest {
		return &sandboxv1.ResumeSandboxRequest{SandboxId: id, HostId: paused.GetHostId(), RestorePolicy: p}
	}
	for _, name := range []string{"state", "memory.hdr"} {
		repair := ruin(t, paused.GetHostId(), "snapshots/"+paused.GetSnapshotId()+"/"+name, flip)
		_, err := s.sandboxes.ResumeSandbox(ctx, policy(sandboxv1.RestorePolicy_RESTORE_POLICY_MEMORY_REQUIRED))
		wantError(t, err, codes.DataLoss, name)
		_, err = s.sandboxes.ResumeSandbox(ctx, policy(sandboxv1.RestorePolicy_RESTORE_POLICY_UNSPECIFIED))
		wantError(t, err, codes.DataLoss, name)
		repair()
	}
	for _, c := range []struct {
		policy  sandboxv1.RestorePolicy
		damaged string
	}{
		{sandboxv1.RestorePolicy_RESTORE_POLICY_PREFER_MEMORY, "memory.hdr"},
		{sandboxv1.RestorePolicy_RESTORE_POLICY_PREFER_MEMORY, ""},
		{sandboxv1.RestorePolicy_RESTORE_POLICY_DISK_ONLY, "state"},
	} {
		if c.damaged != "" {
			durable(t, ctx, id)
			ruin(t, paused.GetHostId(), "snapshots/"+paused.GetSnapshotId()+"/"+c.damaged, flip)
		}
		resume(t, ctx, policy(c.policy))
		r := receipt(t, ctx, id)
		wantKind, wantMemory := sandboxv1.StartKind_START_KIND_DISK_BOOT, ""
		if c.policy == sandboxv1.RestorePolicy_RESTORE_POLICY_PREFER_MEMORY && c.damaged == "" {
			wantKind, wantMemory = sandboxv1.StartKind_START_KIND_RESUME, " memory"
		}
		if r.GetKind() != wantKind {
			t.Errorf("%s with damaged %q: the receipt is %v", c.policy, c.damaged, r)
		}
		if wantFallback := c.policy == sandboxv1.RestorePolicy_RESTORE_POLICY_PREFER_MEMORY && c.damaged != ""; wantFallback != (r.GetFallbackReason() != "") || !strings.Contains(r.GetFallbackReason(), c.damaged) && wantFallback {
			t.Errorf("%s with damaged %q: the reason for a fallback is %q", c.policy, c.damaged, r.GetFallbackReason())
		}
		if got := sh(t, ctx, id, "cat /root/f; cat /dev/shm/f 2>/dev/null | xargs; echo memory > /dev/shm/f"); strings.Join(strings.Fields(got), " ") != "disk"+wantMemory {
			t.Errorf("%s with damaged %q: it answers %q", c.policy, c.damaged, got)
		}
		paused = pause(t, ctx, id)
	}
}
