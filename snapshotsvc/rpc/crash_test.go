package rpc_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/pgtest"
	"github.com/coveyhq/covey/snapshotsvc/postgres"
	"github.com/coveyhq/covey/snapshotsvc/registry"
	"github.com/coveyhq/covey/snapshotsvc/store"
)

// A test binary with these in its environment is a registry, for tests that kill one.
const (
	childDSN = "COVEY_TEST_REGISTRY_DSN"
	childDir = "COVEY_TEST_REGISTRY_DIR"
)

// serveChild is a registry in a process of its own. It prints its address and ends only by being killed.
func serveChild(dsn, dir string) error {
	ctx, log := context.Background(), slog.New(slog.NewTextHandler(os.Stderr, nil))
	index, err := postgres.Open(ctx, postgres.Config{DSN: dsn})
	if err != nil {
		return err
	}
	objects, err := store.NewDirectory(dir)
	if err != nil {
		return err
	}
	service := registry.New(registry.Config{Index: index, Store: objects, Log: log})
	go service.Run(ctx)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	register(s, service, log)
	fmt.Println(lis.Addr())
	return s.Serve(lis)
}

// child starts a registry in a process of its own and points f at it; kill ends it as kill -9 does.
func (f *fixture) child(dir string) (kill func()) {
	f.t.Helper()
	addr, kill := pgtest.Child(f.t, childDSN+"="+f.dsn, childDir+"="+dir)
	f.connect(addr)
	return kill
}

// partBytes is how much there is of unfinished uploads.
func partBytes(t *testing.T, dir string) (n int64) {
	t.Helper()
	parts, err := filepath.Glob(dir + "/builds/*.part")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if info, err := os.Stat(p); err == nil {
			n += info.Size()
		}
	}
	return n
}

func TestAnUploadGoesOnAfterTheRegistryWasKilled(t *testing.T) {
	dir := t.TempDir()
	objects, err := store.NewDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	f := newFixtureOn(t, pgtest.Database(t), objects)
	kill := f.child(dir)
	i := newPause(newBuild(8 << 20))
	if _, err := f.reg.RegisterSnapshot(as(t, ""), i.reg); err != nil {
		t.Fatal(err)
	}
	o := i.objects[3]
	stream, _ := f.begin(as(t, ""), i.id(), o)
	sent := 0
	for ; sent < 5<<20; sent += 1 << 20 {
		if err := stream.Send(&snapshotv1.UploadObjectRequest{Offset: int64(sent), Data: o.data[sent : sent+1<<20]}); err != nil {
			t.Fatal(err)
		}
	}
	// Wait until it has taken some of it, however little, and kill it in the middle.
	for tick := time.NewTicker(time.Millisecond); partBytes(t, dir) == 0; <-tick.C {
	}
	kill()
	if _, err := stream.Recv(); err == nil {
		t.Fatal("a killed registry answered")
	}
	f.child(dir)
	again, stored := f.begin(as(t, ""), i.id(), o)
	if stored == 0 || stored > int64(sent) {
		t.Fatalf("goes on at %d of %d sent", stored, sent)
	}
	if err := again.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if s := f.save(i); s.GetState() != durable {
		t.Fatal(s)
	}
	f.whole(i)
}
