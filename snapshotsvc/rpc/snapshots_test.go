package rpc_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/snapshotsvc/registry"
)

func TestSnapshotsOfOthersAreNotFoundEvenByTheirIDs(t *testing.T) {
	f := newFixture(t)
	i := newTemplate("golden", newBuild(10))
	f.save(i)
	ctx, id, key := as(t, "rival"), i.id(), i.objects[3].ref.Key
	for name, call := range map[string]func() error{
		"get": func() error { _, err := f.GetSnapshot(ctx, &snapshotv1.GetSnapshotRequest{SnapshotId: id}); return err },
		"by name": func() error {
			_, err := f.GetSnapshot(ctx, &snapshotv1.GetSnapshotRequest{SnapshotId: "golden"})
			return err
		},
		"rename": func() error {
			_, err := f.RenameSnapshot(ctx, &snapshotv1.RenameSnapshotRequest{SnapshotId: id, Name: "mine"})
			return err
		},
		"delete": func() error {
			_, err := f.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: id})
			return err
		},
		"explain": func() error {
			_, err := f.ExplainSnapshot(ctx, &snapshotv1.ExplainSnapshotRequest{SnapshotId: id})
			return err
		},
		"manifest": func() error {
			_, err := f.reg.GetManifest(as(t, ""), &snapshotv1.GetManifestRequest{Snapshot: id, TenantId: "rival"})
			return err
		},
		"as caller": func() error {
			_, err := f.reg.GetManifest(ctx, &snapshotv1.GetManifestRequest{Snapshot: id})
			return err
		},
		"claimed": func() error {
			_, err := f.reg.GetManifest(ctx, &snapshotv1.GetManifestRequest{Snapshot: id, TenantId: "acme"})
			return err
		},
		"read": func() error { _, err := f.get(ctx, key, 0, 0); return err },
		"lease": func() error {
			_, err := f.reg.AcquireLease(ctx, &snapshotv1.AcquireLeaseRequest{SnapshotId: id, Holder: "x"})
			return err
		},
		"commit": func() error {
			_, err := f.reg.CommitSnapshot(ctx, &snapshotv1.CommitSnapshotRequest{SnapshotId: id})
			return err
		},
		"upload": func() error { return f.put(ctx, id, i.objects[3]) },
	} {
		reason := "SNAPSHOT_NOT_FOUND"
		if name == "read" {
			reason = "OBJECT_NOT_FOUND"
		}
		t.Run(name, func(t *testing.T) { wantError(t, call(), codes.NotFound, reason) })
	}
	if _, err := f.reg.DropSnapshot(ctx, &snapshotv1.DropSnapshotRequest{SnapshotId: id}); err != nil {
		t.Fatal(err)
	}
	_, err := f.reg.RegisterSnapshot(ctx, i.reg)
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "tenant_id")
	list, err := f.ListSnapshots(ctx, &snapshotv1.ListSnapshotsRequest{AllKinds: true})
	if err != nil || len(list.GetSnapshots()) != 0 {
		t.Fatalf("list: %v, %v", list, err)
	}
	f.collect()
	f.whole(i)
	// The same name is free for another tenant.
	f.save(newImage(snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE, "rival", "golden", newBuild(1)))
}

func TestNamesAreUniqueAndRenamed(t *testing.T) {
	f := newFixture(t)
	ctx := as(t, "acme")
	a, b := newTemplate("a", newBuild(1)), newTemplate("b", newBuild(1))
	f.save(a)
	f.save(b)
	_, err := f.reg.RegisterSnapshot(as(t, ""), newTemplate("a").reg)
	wantError(t, err, codes.AlreadyExists, "NAME_TAKEN", `"a"`)
	_, err = f.RenameSnapshot(ctx, &snapshotv1.RenameSnapshotRequest{SnapshotId: "b", Name: "a"})
	wantError(t, err, codes.AlreadyExists, "NAME_TAKEN", `"a"`)
	_, err = f.RenameSnapshot(ctx, &snapshotv1.RenameSnapshotRequest{SnapshotId: "b", Name: "Not A Name"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "name", "[a-z0-9._-]")
	r, err := f.RenameSnapshot(ctx, &snapshotv1.RenameSnapshotRequest{SnapshotId: "b", Name: "c"})
	if err != nil || r.GetSnapshot().GetName() != "c" || r.GetSnapshot().GetId() != b.id() {
		t.Fatalf("renamed: %v, %v", r, err)
	}
	if _, err := f.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.RenameSnapshot(ctx, &snapshotv1.RenameSnapshotRequest{SnapshotId: "c", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	p := newPause(newBuild(1))
	f.save(p)
	_, err = f.RenameSnapshot(ctx, &snapshotv1.RenameSnapshotRequest{SnapshotId: p.id(), Name: "p"})
	wantError(t, err, codes.FailedPrecondition, "NOT_A_TEMPLATE")
}

func TestADeletionIsRefusedWhileSomethingNeedsTheSnapshotAndSaysWhat(t *testing.T) {
	f := newFixture(t)
	ctx := as(t, "acme")
	i := newTemplate("golden", newBuild(10))
	f.save(i)
	if _, err := f.reg.AcquireLease(as(t, ""), &snapshotv1.AcquireLeaseRequest{SnapshotId: i.id(), Holder: "sandbox/sb_7"}); err != nil {
		t.Fatal(err)
	}
	_, err := f.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: "golden"})
	wantError(t, err, codes.FailedPrecondition, "SNAPSHOT_IN_USE", "sandbox sb_7")
	e, err := f.ExplainSnapshot(ctx, &snapshotv1.ExplainSnapshotRequest{SnapshotId: "golden"})
	if err != nil || len(e.GetPinnedBy()) != 1 {
		t.Fatalf("explained: %v, %v", e, err)
	}
	if _, err := f.reg.ReleaseLease(as(t, ""), &snapshotv1.ReleaseLeaseRequest{Holder: "sandbox/sb_7"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: "golden"}); err != nil {
		t.Fatal(err)
	}
	f.collect()
	if len(f.paths()) != 0 {
		t.Fatalf("left %v", f.paths())
	}
	p := newPause(newBuild(1))
	f.save(p)
	_, err = f.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: p.id()})
	wantError(t, err, codes.FailedPrecondition, "SNAPSHOT_IN_USE", "sandbox sb_1")
}

func TestALeaseThatEndsByItselfHoldsNothingAfterwards(t *testing.T) {
	f := newFixture(t)
	i := newTemplate("golden", newBuild(10))
	f.save(i)
	if err := f.service.Acquire(t.Context(), "", i.id(), "sandbox/sb_1", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(time.Minute)
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		if _, err := f.DeleteSnapshot(as(t, "acme"), &snapshotv1.DeleteSnapshotRequest{SnapshotId: i.id()}); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the lease of a millisecond still holds")
		}
	}
}

// A host that has a snapshot open goes on reading it after its deletion, while nobody else finds it.
func TestADroppedSnapshotIsReadUntilItsLeasesHaveEnded(t *testing.T) {
	f := newFixture(t)
	i := newTemplate("golden", newBuild(5000))
	f.save(i)
	lease := &snapshotv1.AcquireLeaseRequest{SnapshotId: i.id(), Holder: "host/host-b"}
	if _, err := f.reg.AcquireLease(as(t, ""), lease); err != nil {
		t.Fatal(err)
	}
	if _, err := f.DeleteSnapshot(as(t, "acme"), &snapshotv1.DeleteSnapshotRequest{SnapshotId: "golden"}); err != nil {
		t.Fatal("what a host has open is no reason to refuse: ", err)
	}
	f.collect()
	f.whole(i)
	_, err := f.GetSnapshot(as(t, "acme"), &snapshotv1.GetSnapshotRequest{SnapshotId: i.id()})
	wantError(t, err, codes.NotFound, "SNAPSHOT_NOT_FOUND")
	if _, err := f.reg.AcquireLease(as(t, ""), lease); err != nil {
		t.Fatal("the lease cannot be renewed: ", err)
	}
	_, err = f.reg.AcquireLease(as(t, ""), &snapshotv1.AcquireLeaseRequest{SnapshotId: i.id(), Holder: "host/host-c"})
	wantError(t, err, codes.NotFound, "SNAPSHOT_NOT_FOUND")
	f.save(newTemplate("golden", newBuild(1)))
	if _, err := f.reg.ReleaseLease(as(t, ""), &snapshotv1.ReleaseLeaseRequest{SnapshotId: i.id(), Holder: "host/host-b"}); err != nil {
		t.Fatal(err)
	}
	f.collect()
	if _, err := f.get(as(t, ""), i.objects[3].ref.Key, 0, 0); err == nil {
		t.Fatal("still read")
	}
	if len(f.paths()) != 4 {
		t.Fatalf("left %v", f.paths())
	}
}

func TestBuildsThatOthersNameOutliveTheirSnapshot(t *testing.T) {
	f := newFixture(t)
	shared := newBuild(4000)
	parent := newPause(shared, newBuild(100))
	child := newTemplate("child", shared, newBuild(7))
	child.reg.Manifest.ParentId = parent.id()
	f.save(parent)
	if s := f.save(child); s.GetSharedBytes() != 4000 || s.GetUniqueBytes() != 7 {
		t.Fatalf("sizes: %v", s)
	}
	e, err := f.ExplainSnapshot(as(t, "acme"), &snapshotv1.ExplainSnapshotRequest{SnapshotId: "child"})
	if err != nil || len(e.GetBuilds()) != 2 || !slices.Equal(e.GetLineage(), []string{parent.id()}) || len(e.GetPinnedBy()) != 0 {
		t.Fatalf("explained: %v, %v", e, err)
	}
	for _, b := range e.GetBuilds() {
		if b.GetStoredBytes() == 4000 && !slices.Equal(b.GetNamedBy(), []string{parent.id(), child.id()}) {
			t.Fatalf("the shared build is named by %v", b.GetNamedBy())
		}
	}
	if _, err := f.reg.DropSnapshot(as(t, ""), &snapshotv1.DropSnapshotRequest{SnapshotId: parent.id()}); err != nil {
		t.Fatal(err)
	}
	f.collect()
	f.whole(child)
	if n := len(f.paths()); n != len(child.objects) {
		t.Fatalf("%d objects left: %v", n, f.paths())
	}
	s, err := f.GetSnapshot(as(t, "acme"), &snapshotv1.GetSnapshotRequest{SnapshotId: "child"})
	if err != nil || s.GetSnapshot().GetUniqueBytes() != 4007 {
		t.Fatalf("sizes afterwards: %v, %v", s, err)
	}
}

// A template of a paused sandbox is a second manifest that names the same objects.
func TestACopyOutlivesWhatItWasCopiedFrom(t *testing.T) {
	f := newFixture(t)
	pause := newPause(newBuild(4000))
	f.save(pause)
	again := &image{reg: proto.CloneOf(pause.reg), objects: pause.objects}
	again.reg.Manifest.SnapshotId = newID()
	again.reg.Kind, again.reg.Name = snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE, "golden"
	if s := f.save(again); s.GetState() != durable {
		t.Fatal(s)
	}
	if _, err := f.reg.DropSnapshot(as(t, ""), &snapshotv1.DropSnapshotRequest{SnapshotId: pause.id()}); err != nil {
		t.Fatal(err)
	}
	f.collect()
	f.whole(again)
}

func TestRegistrationIsIdempotentByID(t *testing.T) {
	f := newFixture(t)
	i := newTemplate("golden", newBuild(10))
	f.save(i)
	r, err := f.reg.RegisterSnapshot(as(t, ""), i.reg)
	if err != nil || r.GetSnapshot().GetState() != durable {
		t.Fatalf("again: %v, %v", r, err)
	}
	other := proto.CloneOf(i.reg)
	other.Manifest.Vcpus++
	_, err = f.reg.RegisterSnapshot(as(t, ""), other)
	wantError(t, err, codes.AlreadyExists, "SNAPSHOT_ID_TAKEN", i.id())
	clash := newPause(newObject(i.objects[3].ref.Key, 11))
	_, err = f.reg.RegisterSnapshot(as(t, ""), clash.reg)
	wantError(t, err, codes.AlreadyExists, "OBJECT_DIFFERS", i.objects[3].ref.Key)
}

func TestWhatWasDroppedNeverComesBack(t *testing.T) {
	f := newFixture(t)
	early, late := newPause(newBuild(10)), newPause(newBuild(10))
	f.save(late)
	for _, i := range []*image{early, late} {
		for range 2 {
			if _, err := f.reg.DropSnapshot(as(t, ""), &snapshotv1.DropSnapshotRequest{SnapshotId: i.id()}); err != nil {
				t.Fatal(err)
			}
		}
		_, err := f.reg.RegisterSnapshot(as(t, ""), i.reg)
		wantError(t, err, codes.NotFound, "SNAPSHOT_NOT_FOUND")
	}
}

func TestQuotasBindTemplatesAndNeverPauses(t *testing.T) {
	f := newFixture(t, func(c *registry.Config) {
		c.Quotas = map[string]registry.Quota{"acme": {Snapshots: 3, Bytes: 20000}}
	})
	shared := newBuild(9000)
	f.save(newTemplate("a", shared))
	f.save(newTemplate("b", shared)) // Counted once.
	_, err := f.reg.RegisterSnapshot(as(t, ""), newTemplate("c", newBuild(9000)).reg)
	wantError(t, err, codes.ResourceExhausted, "QUOTA_EXCEEDED", "of at most 20000")
	f.save(newPause(newBuild(9000)))
	_, err = f.reg.RegisterSnapshot(as(t, ""), newTemplate("c").reg)
	wantError(t, err, codes.ResourceExhausted, "QUOTA_EXCEEDED", "4 snapshots of at most 3")
	f.save(newImage(snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE, "rival", "c", newBuild(90000)))
}

func TestListsArePagedNewestFirst(t *testing.T) {
	f := newFixture(t)
	var want []string
	for n := range 7 {
		i := newTemplate(fmt.Sprint("t", n))
		i.reg.Manifest.CreateTime = timestamppb.New(time.Unix(1700000000+int64(n/2), 0))
		if _, err := f.reg.RegisterSnapshot(as(t, ""), i.reg); err != nil {
			t.Fatal(err)
		}
		want = append(want, i.id())
	}
	f.save(newPause())
	var got []string
	q := &snapshotv1.ListSnapshotsRequest{PageSize: 3}
	for {
		r, err := f.ListSnapshots(as(t, "acme"), q)
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range r.GetSnapshots() {
			if i > 0 && r.GetSnapshots()[i-1].GetCreateTime().AsTime().Before(s.GetCreateTime().AsTime()) {
				t.Fatal("not newest first")
			}
			got = append(got, s.GetId())
		}
		if q.PageToken = r.GetNextPageToken(); q.PageToken == "" {
			break
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("listed %v, want %v", got, want)
	}
	r, err := f.ListSnapshots(as(t, "acme"), &snapshotv1.ListSnapshotsRequest{AllKinds: true})
	if err != nil || len(r.GetSnapshots()) != 8 {
		t.Fatalf("all kinds: %d, %v", len(r.GetSnapshots()), err)
	}
	_, err = f.ListSnapshots(as(t, "acme"), &snapshotv1.ListSnapshotsRequest{PageToken: "x"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "page_token")
}

func TestHostsAreKnownByWhatTheySayTheyHave(t *testing.T) {
	f := newFixture(t)
	a, b, c := newTemplate("a"), newTemplate("b"), newTemplate("c")
	f.save(a)
	f.save(b)
	if _, err := f.reg.RegisterSnapshot(as(t, ""), c.reg); err != nil {
		t.Fatal(err)
	}
	hosts := func(i *image) []string {
		m, err := f.reg.GetManifest(as(t, ""), &snapshotv1.GetManifestRequest{Snapshot: i.id()})
		if err != nil {
			t.Fatal(err)
		}
		return m.GetHostIds()
	}
	say := func(host string, ids ...string) []string {
		r, err := f.reg.ListHostSnapshots(as(t, ""), &snapshotv1.ListHostSnapshotsRequest{HostId: host, SnapshotIds: ids})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetExistingIds()
	}
	gone := newID()
	if got := say("host-b", a.id(), gone, "nonsense"); !slices.Equal(got, []string{a.id()}) {
		t.Fatalf("existing: %v", got)
	}
	if !slices.Equal(hosts(a), []string{"host-a", "host-b"}) || !slices.Equal(hosts(b), []string{"host-a"}) {
		t.Fatalf("hosts: %v, %v", hosts(a), hosts(b))
	}
	// What is nowhere else stays its maker's: his list may be older than the registration.
	say("host-a", b.id())
	if !slices.Equal(hosts(a), []string{"host-b"}) || !slices.Equal(hosts(b), []string{"host-a"}) || !slices.Equal(hosts(c), []string{"host-a"}) {
		t.Fatalf("hosts: %v, %v, %v", hosts(a), hosts(b), hosts(c))
	}
}

func TestWhoReadsARangeIsToldWhichHostsFetchTheSameSnapshot(t *testing.T) {
	f := newFixture(t)
	a := newTemplate("a", newBuild(2<<20))
	f.save(a)
	lease := func(holder string) {
		t.Helper()
		if _, err := f.reg.AcquireLease(as(t, ""), &snapshotv1.AcquireLeaseRequest{SnapshotId: a.id(), Holder: holder, TtlSec: 60}); err != nil {
			t.Fatal(err)
		}
	}
	lease("host/host-b")
	lease("sandbox/sb_1")
	for id, want := range map[string][]string{a.id(): {"host-a", "host-b"}, "": nil, newID(): nil} {
		s, err := f.reg.ReadObject(as(t, ""), &snapshotv1.ReadObjectRequest{Key: a.objects[3].ref.Key, SnapshotId: id})
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got := slices.Sorted(slices.Values(m.GetHostIds()))
		if !slices.Equal(got, want) {
			t.Errorf("read for %q: %v, want %v", id, got, want)
		}
		if m, err = s.Recv(); err != nil || len(m.GetHostIds()) != 0 {
			t.Errorf("the second frame: %v, %v", m.GetHostIds(), err)
		}
	}
}

func TestBadRequestsNameTheFieldAndWhatIsLegal(t *testing.T) {
	f := newFixture(t)
	for field, spoil := range map[string]func(*snapshotv1.RegisterSnapshotRequest){
		"manifest.snapshot_id":     func(r *snapshotv1.RegisterSnapshotRequest) { r.Manifest.SnapshotId = "snap_1" },
		"manifest.state":           func(r *snapshotv1.RegisterSnapshotRequest) { r.Manifest.State = nil },
		"manifest.state.key":       func(r *snapshotv1.RegisterSnapshotRequest) { r.Manifest.State.Key = "../../etc/passwd" },
		"manifest.state.sha256":    func(r *snapshotv1.RegisterSnapshotRequest) { r.Manifest.State.Sha256 = []byte("x") },
		"manifest.builds.id":       func(r *snapshotv1.RegisterSnapshotRequest) { r.Manifest.Builds[0].Id = "Z" },
		"manifest.builds.kind":     func(r *snapshotv1.RegisterSnapshotRequest) { r.Manifest.Builds[0].Kind = "tape" },
		"manifest.create_time":     func(r *snapshotv1.RegisterSnapshotRequest) { r.Manifest.CreateTime = nil },
		"manifest":                 func(r *snapshotv1.RegisterSnapshotRequest) { r.Manifest.Vcpus = 0 },
		"host_id":                  func(r *snapshotv1.RegisterSnapshotRequest) { r.HostId = "" },
		"name":                     func(r *snapshotv1.RegisterSnapshotRequest) { r.Name = "" },
		"kind":                     func(r *snapshotv1.RegisterSnapshotRequest) { r.Kind = 77 },
		"tenant_id":                func(r *snapshotv1.RegisterSnapshotRequest) { r.TenantId = "" },
		"metadata":                 func(r *snapshotv1.RegisterSnapshotRequest) { r.Metadata = map[string]string{"a b": ""} },
		"manifest.working_set.key": func(r *snapshotv1.RegisterSnapshotRequest) { r.Manifest.WorkingSet = r.Manifest.State },
	} {
		r := newTemplate("x", newBuild(1)).reg
		spoil(r)
		_, err := f.reg.RegisterSnapshot(as(t, ""), r)
		wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", field+":")
	}
	_, err := f.reg.GetManifest(as(t, ""), &snapshotv1.GetManifestRequest{Snapshot: "golden"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "tenant_id")
	_, err = f.get(as(t, ""), "../x", 0, 0)
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "key")
}
