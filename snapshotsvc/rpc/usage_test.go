package rpc_test

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/snapshotsvc/registry"
)

func (f *fixture) usage(tenant string) *snapshotv1.GetUsageResponse {
	f.t.Helper()
	r, err := f.reg.GetUsage(as(f.t, ""), &snapshotv1.GetUsageRequest{TenantId: tenant})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// What two snapshots of a tenant share is not free, and not paid twice; what was deleted costs nothing, even if a host has it open.
func TestATenantUsesWhatItsSnapshotsNameEachObjectOnce(t *testing.T) {
	f := newFixture(t, func(c *registry.Config) { c.Quota = registry.Quota{Bytes: 20_000} })
	shared := newBuild(9000)
	a, b := newTemplate("a", shared), newTemplate("b", shared)
	f.save(a)
	f.save(b)
	f.save(newImage(snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE, "rival", "c", shared))
	const files = 900 + 300 + 200 // of each snapshot's own
	u := f.usage("acme")
	want := []string{a.id(), b.id()}
	slices.Sort(want)
	if u.GetStoredBytes() != 9000+2*files || u.GetSnapshots() != 2 || !slices.Equal(u.GetTemplateIds(), want) {
		t.Fatalf("usage is %v", u)
	}
	_, err := f.reg.RegisterSnapshot(as(t, ""), newTemplate("d", newBuild(9000)).reg)
	wantError(t, err, codes.ResourceExhausted, "QUOTA_EXCEEDED")
	if _, err := f.reg.AcquireLease(as(t, ""), &snapshotv1.AcquireLeaseRequest{SnapshotId: a.id(), Holder: "host/host-a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.DeleteSnapshot(as(t, "acme"), &snapshotv1.DeleteSnapshotRequest{SnapshotId: a.id()}); err != nil {
		t.Fatal(err)
	}
	if u := f.usage("acme"); u.GetStoredBytes() != 9000+files || u.GetSnapshots() != 1 || len(u.GetTemplateIds()) != 1 {
		t.Fatalf("usage is %v after a deletion", u)
	}
	_, err = f.reg.GetUsage(as(t, "rival"), &snapshotv1.GetUsageRequest{TenantId: "acme"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "tenant")
	_, err = f.reg.GetUsage(as(t, ""), &snapshotv1.GetUsageRequest{})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "required")
}
