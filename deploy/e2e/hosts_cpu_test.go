package e2e

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
)

// masked takes CPU features away from a host by its configuration, until the test's end.
func masked(t *testing.T, ctx context.Context, host string, features ...string) {
	t.Helper()
	name := "hostagentd-" + host
	path := filepath.Join(s.m.Dir, "config", name+".yaml")
	usual, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	again := func(ctx context.Context, conf []byte) {
		if err := os.WriteFile(path, conf, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.m.Kill(ctx, name); err != nil {
			t.Fatal(err)
		}
		revive(t, ctx, host)
	}
	s.Cleanup(t, func(ctx context.Context) { again(ctx, usual) })
	again(ctx, append([]byte("cpu: {mask: ["+strings.Join(features, ", ")+"]}\n"), usual...))
}

// bounded sets a baseline for all hosts, until the test's end, and returns once they have it.
func bounded(t *testing.T, ctx context.Context) *schedulerv1.CpuBaseline {
	t.Helper()
	s.Cleanup(t, func(ctx context.Context) {
		if _, err := s.hosts.ClearBaseline(ctx, &schedulerv1.ClearBaselineRequest{}); err != nil {
			t.Error(err)
		}
	})
	set, err := s.hosts.SetBaseline(ctx, &schedulerv1.SetBaselineRequest{Common: true})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "every host has the baseline", func() bool {
		res, err := s.hosts.ListHosts(ctx, &schedulerv1.ListHostsRequest{})
		return err == nil && !slices.ContainsFunc(res.GetHosts(), func(h *schedulerv1.Host) bool {
			return !slices.Equal(h.GetCpuBaseline().GetFeatures(), set.GetBaseline().GetFeatures())
		})
	})
	return set.GetBaseline()
}

// sees tells whether a guest has a CPU feature.
func sees(t *testing.T, ctx context.Context, id, feature string) bool {
	t.Helper()
	return slices.Contains(strings.Fields(sh(t, ctx, id, "grep -m1 ^flags /proc/cpuinfo")), feature)
}

func resumeOn(ctx context.Context, id, host string) (*sandboxv1.Sandbox, error) {
	res, err := s.sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id, HostId: host})
	return res.GetSandbox(), err
}

func TestASnapshotRunsOnlyWhereItsCPUFeaturesAreAndWithABaselineEverywhere(t *testing.T) {
	const feature = "sse4_2"
	ctx := start(t)
	if _, err := s.hosts.ClearBaseline(ctx, &schedulerv1.ClearBaselineRequest{}); err != nil { // that a fuzzer may have set
		t.Fatal(err)
	}
	masked(t, ctx, "host-b", feature)
	before, err := s.hosts.GetBaseline(ctx, &schedulerv1.GetBaselineRequest{})
	if err != nil || before.GetBaseline() != nil || len(before.GetHosts()) != 2 || !slices.Equal(before.GetHosts()[0].GetBeyondFeatures(), []string{feature}) || len(before.GetHosts()[1].GetBeyondFeatures()) > 0 {
		t.Fatalf("host-a is richer by %s alone: %v, %v", feature, before, err)
	}

	old := placed(t, ctx, "host-a")
	if !sees(t, ctx, old.GetId(), feature) {
		t.Fatalf("a guest on host-a has no %s", feature)
	}
	was := pause(t, ctx, old.GetId())
	can, err := sandboxv1.NewOperationsServiceClient(s.conn).CanRestoreSnapshot(ctx, &sandboxv1.CanRestoreSnapshotRequest{SnapshotId: was.GetSnapshotId()})
	if err != nil || len(can.GetVerdicts()) != 2 || !can.GetVerdicts()[0].GetCan() || can.GetVerdicts()[1].GetCan() ||
		!slices.Equal(can.GetVerdicts()[1].GetReasons(), []string{"lacks " + feature}) || !slices.Contains(can.GetCpuFeatures(), feature) || !strings.HasPrefix(can.GetMachine(), "microvm-") {
		t.Errorf("where it can be restored: %v, %v", can, err)
	}
	_, err = resumeOn(ctx, old.GetId(), "host-b")
	wantError(t, err, codes.ResourceExhausted, "host-b, which was asked for, lacks "+feature)

	features := append(slices.Clone(before.GetCommonFeatures()), feature)
	_, err = s.hosts.SetBaseline(ctx, &schedulerv1.SetBaselineRequest{Features: features})
	wantError(t, err, codes.InvalidArgument, "features: must be features that every host of the pool has", "host-b lacks "+feature)
	if b := bounded(t, ctx); slices.Contains(b.GetFeatures(), feature) || !slices.Equal(b.GetFeatures(), before.GetCommonFeatures()) {
		t.Errorf("the baseline is %v", b)
	}

	sb := placed(t, ctx, "host-a")
	l := burden(t, ctx, sb.GetId(), 1)
	if sees(t, ctx, sb.GetId(), feature) {
		t.Errorf("a guest that was booted with the baseline has %s", feature)
	}
	pause(t, ctx, sb.GetId())
	// At once: that its snapshot is on its way to the registry is waited for.
	if got, err := resumeOn(ctx, sb.GetId(), "host-b"); err != nil || got.GetHostId() != "host-b" {
		t.Fatalf("it resumes on %s: %v", got.GetHostId(), err)
	}
	l.Check(t, ctx)
	if sees(t, ctx, sb.GetId(), feature) {
		t.Errorf("on host-b it has %s", feature)
	}
	if got, err := resumeOn(ctx, old.GetId(), ""); err != nil || got.GetHostId() != "host-a" || !sees(t, ctx, old.GetId(), feature) {
		t.Errorf("what was made before the baseline resumes on %s: %v; it must have %s as before", got.GetHostId(), err, feature)
	}
}
