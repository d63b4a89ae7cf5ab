package rpc_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/pgtest"
	"github.com/coveyhq/covey/snapshotsvc/registry"
	"github.com/coveyhq/covey/snapshotsvc/store"
)

const (
	local   = snapshotv1.SnapshotState_SNAPSHOT_STATE_LOCAL
	durable = snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE
)

func TestASnapshotIsDurableOnceAllOfItIsStored(t *testing.T) {
	f := newFixture(t)
	i := newTemplate("golden", newBuild(3<<20), newBuild(100), newBuild(0))
	r, err := f.reg.RegisterSnapshot(as(t, ""), i.reg)
	if err != nil || r.GetSnapshot().GetState() != local {
		t.Fatalf("registered: %v, %v", r, err)
	}
	if _, err := f.get(as(t, ""), i.objects[0].ref.Key, 0, 0); err == nil {
		t.Fatal("an object that is not stored is read")
	}
	_, err = f.reg.CommitSnapshot(as(t, ""), &snapshotv1.CommitSnapshotRequest{SnapshotId: i.id()})
	wantError(t, err, codes.FailedPrecondition, "OBJECTS_MISSING", i.objects[3].ref.Key)
	if s := f.save(i); s.GetState() != durable || s.GetUniqueBytes() != 3<<20+100 || s.GetSharedBytes() != 0 {
		t.Fatalf("committed: %v", s)
	}
	f.whole(i)
	m, err := f.reg.GetManifest(as(t, ""), &snapshotv1.GetManifestRequest{Snapshot: "golden", TenantId: "acme"})
	if err != nil || !proto.Equal(m.GetManifest(), i.reg.GetManifest()) || !slices.Equal(m.GetHostIds(), []string{"host-a"}) {
		t.Fatalf("manifest %v, %v", m, err)
	}
	b, err := f.get(as(t, ""), i.objects[3].ref.Key, 1<<20+5, 1<<20+1)
	if err != nil || !bytes.Equal(b, i.objects[3].data[1<<20+5:2<<20+6]) {
		t.Fatalf("range: %d bytes, %v", len(b), err)
	}
	_, err = f.get(as(t, ""), i.objects[3].ref.Key, 3<<20, 1)
	wantError(t, err, codes.OutOfRange, "OUT_OF_RANGE", "3145728")
}

func TestBytesWithAWrongChecksumAreDataLossAndNotKept(t *testing.T) {
	f := newFixture(t)
	i := newPause(newBuild(2 << 20))
	if _, err := f.reg.RegisterSnapshot(as(t, ""), i.reg); err != nil {
		t.Fatal(err)
	}
	wrong := i.objects[3]
	wrong.data = slices.Clone(wrong.data)
	wrong.data[1<<20] ^= 1
	wantError(t, f.put(as(t, ""), i.id(), wrong), codes.DataLoss, "CHECKSUM_MISMATCH", wrong.ref.Key)
	if len(f.paths()) != 0 {
		t.Fatalf("kept %v", f.paths())
	}
	f.save(i)
	f.whole(i)
}

// begin opens an upload and returns what is stored.
func (f *fixture) begin(ctx context.Context, snapshot string, o object) (snapshotv1.RegistryService_UploadObjectClient, int64) {
	f.t.Helper()
	stream, err := f.reg.UploadObject(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := stream.Send(&snapshotv1.UploadObjectRequest{Object: o.ref, SnapshotId: snapshot}); err != nil {
		f.t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil {
		f.t.Fatal(err)
	}
	return stream, m.GetStoredBytes()
}

func TestAnUploadGoesOnWhereItWasBrokenOff(t *testing.T) {
	f := newFixture(t)
	i := newPause(newBuild(3 << 20))
	if _, err := f.reg.RegisterSnapshot(as(t, ""), i.reg); err != nil {
		t.Fatal(err)
	}
	o := i.objects[3]
	stream, _ := f.begin(as(t, ""), i.id(), o)
	if err := stream.Send(&snapshotv1.UploadObjectRequest{Data: o.data[:1<<20]}); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetComplete() || m.GetStoredBytes() != 1<<20 {
		t.Fatalf("broken off: %v, %v", m, err)
	}
	stream, stored := f.begin(as(t, ""), i.id(), o)
	if stored != 1<<20 {
		t.Fatalf("goes on at %d", stored)
	}
	if err := stream.Send(&snapshotv1.UploadObjectRequest{Offset: 2 << 20, Data: o.data[2<<20:]}); err != nil {
		t.Fatal(err)
	}
	_, err := stream.Recv()
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "offset", "1048576")
	f.save(i)
	f.whole(i)
}

func TestANewerUploadTakesOverFromOneThatStandsStill(t *testing.T) {
	f := newFixture(t)
	i := newPause(newBuild(3 << 20))
	if _, err := f.reg.RegisterSnapshot(as(t, ""), i.reg); err != nil {
		t.Fatal(err)
	}
	o := i.objects[3]
	hangs, _ := f.begin(as(t, ""), i.id(), o)
	if err := f.put(as(t, ""), i.id(), o); err != nil {
		t.Fatal(err)
	}
	if err := hangs.Send(&snapshotv1.UploadObjectRequest{Data: o.data[:1<<20]}); err != nil {
		t.Fatal(err)
	}
	_, err := hangs.Recv()
	wantError(t, err, codes.Aborted, "UPLOAD_TAKEN_OVER", o.ref.Key)
	f.save(i)
	f.whole(i)
}

func TestTwoUploadsOfOneObjectDoNotDisturbEachOther(t *testing.T) {
	f := newFixture(t)
	i := newPause(newBuild(3 << 20))
	if _, err := f.reg.RegisterSnapshot(as(t, ""), i.reg); err != nil {
		t.Fatal(err)
	}
	o := i.objects[3]
	first, _ := f.begin(as(t, ""), i.id(), o)
	send := func(off int) {
		t.Helper()
		if err := first.Send(&snapshotv1.UploadObjectRequest{Offset: int64(off), Data: o.data[off:][:1<<20]}); err != nil {
			t.Fatal(err)
		}
	}
	send(0)
	second, err := f.reg.UploadObject(as(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Send(&snapshotv1.UploadObjectRequest{SnapshotId: i.id(), Object: o.ref}); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	<-tick.C
	send(1 << 20)
	<-tick.C
	send(2 << 20)
	for name, s := range map[string]snapshotv1.RegistryService_UploadObjectClient{"the first": first, "the second": second} {
		if m, err := s.Recv(); err != nil || !m.GetComplete() {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	f.save(i)
	f.whole(i)
}

func TestOnlyWhatTheSnapshotNamesIsTaken(t *testing.T) {
	f := newFixture(t)
	i := newPause(newBuild(10))
	if _, err := f.reg.RegisterSnapshot(as(t, ""), i.reg); err != nil {
		t.Fatal(err)
	}
	wantError(t, f.put(as(t, ""), i.id(), newBuild(10)), codes.InvalidArgument, "INVALID_FIELD", "not named by snapshot")
	other := newObject(i.objects[3].ref.Key, 10)
	wantError(t, f.put(as(t, ""), i.id(), other), codes.InvalidArgument, "INVALID_FIELD", "registered with 10 bytes")
	wantError(t, f.put(as(t, ""), newID(), i.objects[3]), codes.NotFound, "SNAPSHOT_NOT_FOUND")
	stream, _ := f.begin(as(t, ""), i.id(), i.objects[3])
	if err := stream.Send(&snapshotv1.UploadObjectRequest{Data: make([]byte, 11)}); err != nil {
		t.Fatal(err)
	}
	_, err := stream.Recv()
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "beyond the object's 10 bytes")
}

func TestACommitFindsBytesThatWereLost(t *testing.T) {
	f := newFixture(t)
	i := newPause(newBuild(5000))
	if _, err := f.reg.RegisterSnapshot(as(t, ""), i.reg); err != nil {
		t.Fatal(err)
	}
	for _, o := range i.objects {
		if err := f.put(as(t, ""), i.id(), o); err != nil {
			t.Fatal(err)
		}
	}
	at := slices.IndexFunc(f.paths(), func(p string) bool { return strings.HasPrefix(p, "builds/") })
	if err := f.store.Delete(t.Context(), f.paths()[at]); err != nil {
		t.Fatal(err)
	}
	_, err := f.get(as(t, ""), i.objects[3].ref.Key, 0, 0)
	wantError(t, err, codes.DataLoss, "OBJECT_LOST")
	_, err = f.reg.CommitSnapshot(as(t, ""), &snapshotv1.CommitSnapshotRequest{SnapshotId: i.id()})
	wantError(t, err, codes.FailedPrecondition, "OBJECTS_MISSING", i.objects[3].ref.Key)
	f.save(i)
	f.whole(i)
}

func TestAnObjectWhoseFileWasCutShortIsDataLossAndNotTriedForEver(t *testing.T) {
	dir := t.TempDir()
	d, err := store.NewDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	f := newFixtureOn(t, pgtest.Database(t), d)
	i := newPause(newBuild(1000))
	f.save(i)
	files, err := filepath.Glob(filepath.Join(dir, "builds", "*"))
	if err != nil || len(files) != 1 || os.Truncate(files[0], 700) != nil {
		t.Fatal(files, err)
	}
	key := i.objects[3].ref.Key
	if b, err := f.get(as(t, ""), key, 100, 600); err != nil || !bytes.Equal(b, i.objects[3].data[100:700]) {
		t.Fatalf("what is there is not read: %d bytes, %v", len(b), err)
	}
	_, err = f.get(as(t, ""), key, 100, 601)
	wantError(t, err, codes.DataLoss, "OBJECT_LOST", key)
}

func TestAStoreThatIsOutOfReachIsUnavailable(t *testing.T) {
	f := newFixture(t, func(c *registry.Config) { c.Store = downStore{c.Store} })
	i := newPause(newBuild(10))
	if _, err := f.reg.RegisterSnapshot(as(t, ""), i.reg); err != nil {
		t.Fatal(err)
	}
	wantError(t, f.put(as(t, ""), i.id(), i.objects[3]), codes.Unavailable, "STORE_UNAVAILABLE")
}

// downStore is a store that cannot be reached.
type downStore struct{ registry.Store }

func (downStore) Begin(context.Context, string, int64, [32]byte) (registry.StoreUpload, error) {
	return nil, os.ErrDeadlineExceeded
}
