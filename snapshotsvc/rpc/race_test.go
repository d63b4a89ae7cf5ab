package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/pgtest"
	"github.com/coveyhq/covey/snapshotsvc/registry"
	"github.com/coveyhq/covey/snapshotsvc/store"
)

// race is hosts that save, resume and drop snapshots which share builds, while collectors run without pause.
type race struct {
	*fixture
	pool []object

	mu   sync.Mutex // guards live
	live []*image
}

func TestCollectionNeverTakesWhatAnUploadAResumeOrAHeaderNeeds(t *testing.T) {
	runRace(t, newFixture(t), 8, 20)
}

func TestCollectionInABucketNeverTakesWhatIsNeeded(t *testing.T) {
	runRace(t, newFixtureOn(t, pgtest.Database(t), newBucket(t)), 6, 10)
}

// Hosts that upload the same build through two replicas hinder each other, and harm nothing.
func TestTwoReplicasTakeUploadsOfTheSameObjects(t *testing.T) {
	for name, s := range map[string]func(*testing.T) registry.Store{"directory": newDirectory, "bucket": newBucket} {
		t.Run(name, func(t *testing.T) {
			f := newFixtureOn(t, pgtest.Database(t), s(t))
			f.replicate()
			runRace(t, f, 6, 10)
		})
	}
}

func newDirectory(t *testing.T) registry.Store {
	t.Helper()
	s, err := store.NewDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newBucket is a server that speaks S3 over HTTP.
func newBucket(t *testing.T) registry.Store {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("covey"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	s, err := store.NewS3(t.Context(), store.S3Options{
		Endpoint: strings.TrimPrefix(srv.URL, "http://"), Bucket: "covey", Region: "us-east-1", AccessKey: "a", SecretKey: "s", PathStyle: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func runRace(t *testing.T, f *fixture, hosts, rounds int) {
	r := &race{fixture: f}
	for range 4 {
		r.pool = append(r.pool, newBuild(20_000))
	}
	ctx, stop := context.WithCancel(context.Background())
	var collectors, workers sync.WaitGroup
	for range 2 {
		replica := registry.New(registry.Config{Index: f.index, Store: f.store, Log: slog.New(slog.DiscardHandler)})
		collectors.Go(func() { r.forever(ctx, replica.Collect) })
		collectors.Go(func() { r.forever(ctx, replica.Sweep) })
	}
	for h := range hosts {
		workers.Go(func() {
			for range rounds {
				if err := r.round(ctx, fmt.Sprint("host/h", h)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	workers.Wait()
	stop()
	collectors.Wait()
	for _, i := range r.live {
		f.whole(i)
	}
	r.endsEmpty()
}

// forever does something of a collector again and again.
func (r *race) forever(ctx context.Context, do func(context.Context) error) {
	for ctx.Err() == nil {
		if err := do(ctx); err != nil && ctx.Err() == nil {
			r.t.Error(err)
			return
		}
	}
}

// round is what one host does: it saves a snapshot, resumes another, and drops one.
func (r *race) round(ctx context.Context, holder string) error {
	var builds []object
	for _, at := range rand.Perm(len(r.pool))[:2] {
		builds = append(builds, r.pool[at])
	}
	i := newPause(append(builds, newBuild(3000))...)
	if err := r.upload(ctx, i); err != nil {
		return err
	}
	r.mu.Lock()
	r.live = append(r.live, i)
	other := r.live[rand.IntN(len(r.live))]
	r.mu.Unlock()
	if err := r.resume(ctx, other, holder); err != nil {
		return err
	}
	return r.drop(ctx)
}

func (r *race) upload(ctx context.Context, i *image) error {
	if _, err := r.reg.RegisterSnapshot(ctx, i.reg); err != nil {
		return err
	}
	for _, o := range i.objects {
		err := r.put(ctx, i.id(), o)
		// Another host may be uploading the same build, to this replica or to the other one.
		for tick := time.NewTicker(time.Millisecond); status.Code(err) == codes.Aborted || status.Code(err) == codes.Unavailable; err = r.put(ctx, i.id(), o) {
			<-tick.C
		}
		if err != nil {
			return fmt.Errorf("%s of %s: %w", o.ref.Key, i.id(), err)
		}
	}
	_, err := r.reg.CommitSnapshot(ctx, &snapshotv1.CommitSnapshotRequest{SnapshotId: i.id()})
	return err
}

// resume reads all of a snapshot under a lease, if it still is to be had.
func (r *race) resume(ctx context.Context, i *image, holder string) error {
	_, err := r.reg.AcquireLease(ctx, &snapshotv1.AcquireLeaseRequest{SnapshotId: i.id(), Holder: holder})
	if status.Code(err) == codes.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	for _, o := range i.objects {
		b, err := r.get(ctx, o.ref.Key, 0, 0)
		if err != nil || !bytes.Equal(b, o.data) {
			return fmt.Errorf("%s of leased %s: %d bytes, %w", o.ref.Key, i.id(), len(b), err)
		}
	}
	_, err = r.reg.ReleaseLease(ctx, &snapshotv1.ReleaseLeaseRequest{SnapshotId: i.id(), Holder: holder})
	return err
}

// drop drops a snapshot, and keeps a few.
func (r *race) drop(ctx context.Context) error {
	r.mu.Lock()
	if len(r.live) < 2 {
		r.mu.Unlock()
		return nil
	}
	at := rand.IntN(len(r.live))
	i := r.live[at]
	r.live = append(r.live[:at], r.live[at+1:]...)
	r.mu.Unlock()
	_, err := r.reg.DropSnapshot(ctx, &snapshotv1.DropSnapshotRequest{SnapshotId: i.id()})
	return err
}

// endsEmpty drops all that is left, after which nothing is.
func (r *race) endsEmpty() {
	r.t.Helper()
	for _, i := range r.live {
		if _, err := r.reg.DropSnapshot(as(r.t, ""), &snapshotv1.DropSnapshotRequest{SnapshotId: i.id()}); err != nil {
			r.t.Fatal(err)
		}
	}
	// The connections that the collectors were cut off from may hold their locks for a moment more; what is locked is left for the next pass.
	r.collect()
	for end := time.Now().Add(time.Minute); len(r.paths()) != 0 && time.Now().Before(end); {
		r.collect()
	}
	if len(r.paths()) != 0 {
		r.t.Errorf("left in the store: %v", r.paths())
	}
	c, err := pgx.Connect(r.t.Context(), r.dsn)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close(context.Background())
	for _, table := range []string{"snapshot", "object", "reference", "orphan", "garbage", "lease", "host"} {
		var n int
		if err := c.QueryRow(r.t.Context(), "SELECT count(*) FROM snapshot."+table).Scan(&n); err != nil || n != 0 {
			r.t.Errorf("table %s has %d rows left, %v", table, n, err)
		}
	}
}

// lateStore holds deletions up.
type lateStore struct {
	registry.Store
	begun, goOn chan struct{}
}

func (s lateStore) Delete(ctx context.Context, path string) error {
	s.begun <- struct{}{}
	<-s.goOn
	return s.Store.Delete(ctx, path)
}

// The collector has decided to delete a build's bytes, and before it does, a new snapshot that names the build comes and is made durable.
func TestADeletionThatComesLateHitsNothingNew(t *testing.T) {
	f := newFixture(t)
	late := lateStore{f.store, make(chan struct{}, 100), make(chan struct{})}
	collector := registry.New(registry.Config{Index: f.index, Store: late, Log: slog.New(slog.DiscardHandler)})
	build := newBuild(5000)
	old := newPause(build)
	f.save(old)
	if _, err := f.reg.DropSnapshot(as(t, ""), &snapshotv1.DropSnapshotRequest{SnapshotId: old.id()}); err != nil {
		t.Fatal(err)
	}
	collected := make(chan error, 1)
	go func() { collected <- collector.Collect(context.Background()) }()
	<-late.begun
	i := newPause(build)
	f.save(i)
	close(late.goOn)
	if err := <-collected; err != nil {
		t.Fatal(err)
	}
	f.whole(i)
	if len(f.paths()) != len(i.objects) {
		t.Fatalf("left %v", f.paths())
	}
}

// An upload whose snapshot is dropped in its middle leaves nothing, even if it ends after the collector has been.
func TestAnUploadOfWhatWasDroppedLeavesNothing(t *testing.T) {
	f := newFixture(t)
	i := newPause(newBuild(2 << 20))
	if _, err := f.reg.RegisterSnapshot(as(t, ""), i.reg); err != nil {
		t.Fatal(err)
	}
	o := i.objects[3]
	stream, _ := f.begin(as(t, ""), i.id(), o)
	if _, err := f.reg.DropSnapshot(as(t, ""), &snapshotv1.DropSnapshotRequest{SnapshotId: i.id()}); err != nil {
		t.Fatal(err)
	}
	f.collect()
	for off := 0; off < len(o.data); off += 1 << 20 {
		if err := stream.Send(&snapshotv1.UploadObjectRequest{Offset: int64(off), Data: o.data[off : off+1<<20]}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := stream.Recv()
	wantError(t, err, codes.NotFound, "OBJECT_NOT_FOUND", o.ref.Key)
	f.collect()
	if len(f.paths()) != 0 {
		t.Fatalf("left %v", f.paths())
	}
}

func TestASweepFindsWhatACrashLeft(t *testing.T) {
	f := newFixture(t)
	i := newPause(newBuild(100))
	f.save(i)
	stray := newObject("builds/00@stray", 50)
	u, err := f.store.Begin(t.Context(), stray.ref.Key, 50, [32]byte(stray.ref.Sha256))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(u.Write(t.Context(), stray.data), u.Finish(t.Context()), u.Close()); err != nil {
		t.Fatal(err)
	}
	if err := f.service.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(f.paths()) != len(i.objects) {
		t.Fatalf("left %v", f.paths())
	}
	f.whole(i)
}

// stuckStore is a store that cannot delete some of its paths.
type stuckStore struct {
	registry.Store
	stuck map[string]bool
}

func (s stuckStore) Delete(ctx context.Context, path string) error {
	if s.stuck[path] {
		return errors.New("permission denied")
	}
	return s.Store.Delete(ctx, path)
}

func TestAPathThatCannotBeDeletedKeepsNoOther(t *testing.T) {
	stuck := map[string]bool{}
	f := newFixture(t, func(c *registry.Config) { c.Store = stuckStore{c.Store, stuck} })
	i := newPause(newBuild(100), newBuild(100))
	f.save(i)
	stuck[f.paths()[0]] = true
	if _, err := f.reg.DropSnapshot(as(t, ""), &snapshotv1.DropSnapshotRequest{SnapshotId: i.id()}); err != nil {
		t.Fatal(err)
	}
	if err := f.service.Collect(t.Context()); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Fatalf("collected: %v", err)
	}
	if left := f.paths(); len(left) != 1 || !stuck[left[0]] {
		t.Fatalf("left %v", left)
	}
	clear(stuck)
	f.collect()
	if len(f.paths()) != 0 {
		t.Fatalf("left %v", f.paths())
	}
}

// A host that has lost the answer registers again, while the user deletes.
func TestADeletionIsNotUndoneByARegistrationThatIsTriedAgain(t *testing.T) {
	f := newFixture(t)
	for range 60 {
		i := newTemplate("again")
		f.save(i)
		ctx, stop := context.WithCancel(as(t, ""))
		var hosts sync.WaitGroup
		for range 4 {
			hosts.Go(func() {
				for ctx.Err() == nil {
					if _, err := f.reg.RegisterSnapshot(ctx, i.reg); status.Code(err) == codes.NotFound {
						return
					}
				}
			})
		}
		_, err := f.DeleteSnapshot(as(t, "acme"), &snapshotv1.DeleteSnapshotRequest{SnapshotId: i.id()})
		if err != nil {
			t.Error(err)
			stop()
		}
		hosts.Wait()
		stop()
		_, err = f.GetSnapshot(as(t, "acme"), &snapshotv1.GetSnapshotRequest{SnapshotId: i.id()})
		wantError(t, err, codes.NotFound, "SNAPSHOT_NOT_FOUND")
	}
}

// The collector runs by itself, and ends with its context.
func TestTheCollectorRunsByItself(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.service.Run(ctx) }()
	i := newPause(newBuild(100))
	f.save(i)
	if _, err := f.reg.DropSnapshot(as(t, ""), &snapshotv1.DropSnapshotRequest{SnapshotId: i.id()}); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(time.Minute)
	for tick := time.NewTicker(5 * time.Millisecond); len(f.paths()) > 0; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("nothing was collected")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
