package rpc_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/pgtest"
	"github.com/coveyhq/covey/snapshotsvc/postgres"
	"github.com/coveyhq/covey/snapshotsvc/registry"
	"github.com/coveyhq/covey/snapshotsvc/rpc"
	"github.com/coveyhq/covey/snapshotsvc/store"
)

func TestMain(m *testing.M) {
	if dsn := os.Getenv(childDSN); dsn != "" {
		fmt.Fprintln(os.Stderr, serveChild(dsn, os.Getenv(childDir)))
		os.Exit(1)
	}
	os.Exit(pgtest.MainWithoutLeaks(m))
}

// fixture is a registry over real gRPC, PostgreSQL and a store, with clients.
type fixture struct {
	t       testing.TB
	dsn     string
	service *registry.Service
	index   *postgres.Index
	store   registry.Store
	snapshotv1.SnapshotServiceClient
	reg snapshotv1.RegistryServiceClient
}

func newFixture(t testing.TB, opts ...func(*registry.Config)) *fixture {
	t.Helper()
	dir, err := store.NewDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return newFixtureOn(t, pgtest.Database(t), dir, opts...)
}

func newFixtureOn(t testing.TB, dsn string, s registry.Store, opts ...func(*registry.Config)) *fixture {
	t.Helper()
	if err := postgres.Migrate(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	index, err := postgres.Open(t.Context(), postgres.Config{DSN: dsn})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(index.Close)
	conf := registry.Config{Index: index, Store: s, Log: slog.New(slog.DiscardHandler)}
	for _, o := range opts {
		o(&conf)
	}
	f := &fixture{t: t, dsn: dsn, service: registry.New(conf), index: index, store: conf.Store}
	f.connect(serve(t, f.service))
	return f
}

// serve serves a registry and returns where.
func serve(t testing.TB, service *registry.Service) string {
	t.Helper()
	srv := grpc.NewServer()
	register(srv, service, slog.New(slog.DiscardHandler))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	return lis.Addr().String()
}

// replicate adds a second replica on the same database and store; calls go to both by turns.
func (f *fixture) replicate() {
	f.t.Helper()
	second := registry.New(registry.Config{Index: f.index, Store: f.store, Log: slog.New(slog.DiscardHandler)})
	f.connect(serve(f.t, f.service), serve(f.t, second))
}

func register(s *grpc.Server, service *registry.Service, log *slog.Logger) {
	rpc.Register(s, rpc.Config{Registry: service, Log: log, DefaultTenant: "default", Tenant: func(ctx context.Context) (string, bool) {
		v := metadata.ValueFromIncomingContext(ctx, "covey-tenant")
		return strings.Join(v, ""), len(v) > 0
	}})
}

// connect makes clients whose calls go to the addresses by turns.
func (f *fixture) connect(addrs ...string) {
	f.t.Helper()
	where := manual.NewBuilderWithScheme("replicas")
	var all resolver.State
	for _, a := range addrs {
		all.Addresses = append(all.Addresses, resolver.Address{Addr: a})
	}
	where.InitialState(all)
	c, err := grpc.NewClient("replicas:///", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(where),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	f.SnapshotServiceClient, f.reg = snapshotv1.NewSnapshotServiceClient(c), snapshotv1.NewRegistryServiceClient(c)
}

// collect has the garbage collected until nothing is left to do.
func (f *fixture) collect() {
	f.t.Helper()
	if err := f.service.Collect(context.Background()); err != nil {
		f.t.Fatal(err)
	}
}

// paths is what the store has.
func (f *fixture) paths() []string {
	f.t.Helper()
	var all []string
	if err := f.store.Walk(context.Background(), func(p string) error { all = append(all, p); return nil }); err != nil {
		f.t.Fatal(err)
	}
	return all
}

// as is a context of a tenant, of none where it is empty, with a deadline so that a test that hangs says where.
func as(t testing.TB, tenant string) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	if tenant == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "covey-tenant", tenant)
}

const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

func newID() string {
	b := make([]byte, 26)
	rand.Read(b)
	for i := range b {
		b[i] = alphabet[b[i]%32]
	}
	return "snap_" + string(b)
}

// object is bytes with a key.
type object struct {
	ref  *snapshotv1.ObjectRef
	data []byte
}

func newObject(key string, size int) object {
	b := make([]byte, size)
	rand.Read(b)
	sum := sha256.Sum256(b)
	return object{&snapshotv1.ObjectRef{Key: key, SizeBytes: int64(size), Sha256: sum[:]}, b}
}

// newBuild is a build of a random id.
func newBuild(size int) object {
	b := make([]byte, 16)
	rand.Read(b)
	return newObject(fmt.Sprintf("builds/%x", b), size)
}

// image is a snapshot to be registered, with its bytes.
type image struct {
	reg     *snapshotv1.RegisterSnapshotRequest
	objects []object
}

func (i *image) id() string { return i.reg.GetManifest().GetSnapshotId() }

func newTemplate(name string, builds ...object) *image {
	return newImage(snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE, "acme", name, builds...)
}

func newPause(builds ...object) *image {
	return newImage(snapshotv1.SnapshotKind_SNAPSHOT_KIND_PAUSE, "acme", "", builds...)
}

func newImage(kind snapshotv1.SnapshotKind, tenant, name string, builds ...object) *image {
	id := newID()
	i := &image{objects: []object{newObject("snapshots/"+id+"/state", 900), newObject("snapshots/"+id+"/memory.hdr", 300), newObject("snapshots/"+id+"/disk.hdr", 200)}}
	m := &snapshotv1.Manifest{
		SnapshotId: id, Generation: 1, Vmm: "qemu", VmmVersion: "7.2", Machine: "microvm-7.2", Accel: "tcg", Vcpus: 2, MemoryBytes: 512 << 20, DiskBytes: 1 << 30,
		KernelId: "k", CpuFeatures: []string{"sse4.2"}, State: i.objects[0].ref, MemoryHeader: i.objects[1].ref, DiskHeader: i.objects[2].ref,
		Image: "base", SourceSandboxId: "sb_1", CreateTime: timestamppb.New(time.Now()), Annotations: map[string]string{"image_id": "x"},
	}
	m.CreateTime.Nanos -= m.CreateTime.Nanos % 1000
	for n, b := range builds {
		m.Builds = append(m.Builds, &snapshotv1.BuildRef{Id: strings.TrimPrefix(b.ref.Key, "builds/"), Kind: []string{"memory", "disk"}[n%2], Data: b.ref})
	}
	i.objects = append(i.objects, builds...)
	i.reg = &snapshotv1.RegisterSnapshotRequest{TenantId: tenant, Kind: kind, Name: name, Manifest: m, HostId: "host-a", Metadata: map[string]string{"team": "blue"}}
	return i
}

// put uploads an object.
func (f *fixture) put(ctx context.Context, snapshot string, o object) error {
	stream, err := f.reg.UploadObject(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&snapshotv1.UploadObjectRequest{Object: o.ref, SnapshotId: snapshot}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	m, err := stream.Recv()
	if err != nil || m.GetComplete() {
		return err
	}
	for off := m.GetStoredBytes(); off < int64(len(o.data)); {
		p := o.data[off:min(off+1<<20, int64(len(o.data)))]
		if err := stream.Send(&snapshotv1.UploadObjectRequest{Offset: off, Data: p}); errors.Is(err, io.EOF) {
			break // Recv says why.
		} else if err != nil {
			return err
		}
		off += int64(len(p))
	}
	if m, err = stream.Recv(); err == nil && !m.GetComplete() {
		err = fmt.Errorf("not complete: %v", m)
	}
	return err
}

func (f *fixture) get(ctx context.Context, key string, off, length int64) ([]byte, error) {
	stream, err := f.reg.ReadObject(ctx, &snapshotv1.ReadObjectRequest{Key: key, Offset: off, Length: length})
	if err != nil {
		return nil, err
	}
	var all []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if len(m.GetData()) > 1<<20 {
			return nil, fmt.Errorf("a frame of %d bytes", len(m.GetData()))
		}
		all = append(all, m.GetData()...)
	}
}

// save makes a snapshot durable.
func (f *fixture) save(i *image) *snapshotv1.Snapshot {
	f.t.Helper()
	ctx := as(f.t, "")
	if _, err := f.reg.RegisterSnapshot(ctx, i.reg); err != nil {
		f.t.Fatal(err)
	}
	for _, o := range i.objects {
		if err := f.put(ctx, i.id(), o); err != nil {
			f.t.Fatal(o.ref.Key, err)
		}
	}
	r, err := f.reg.CommitSnapshot(ctx, &snapshotv1.CommitSnapshotRequest{SnapshotId: i.id()})
	if err != nil {
		f.t.Fatal(err)
	}
	return r.GetSnapshot()
}

// whole checks that every byte of a snapshot can be read.
func (f *fixture) whole(i *image) {
	f.t.Helper()
	for _, o := range i.objects {
		b, err := f.get(as(f.t, ""), o.ref.Key, 0, 0)
		if err != nil || !bytes.Equal(b, o.data) {
			f.t.Fatalf("%s: %d bytes, %v", o.ref.Key, len(b), err)
		}
	}
}

// wantError checks code and reason, and that the message has all of the words.
func wantError(t testing.TB, err error, code codes.Code, reason string, words ...string) {
	t.Helper()
	st := status.Convert(err)
	var info *errdetails.ErrorInfo
	for _, d := range st.Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok {
			info = i
		}
	}
	if st.Code() != code || info.GetReason() != reason || info.GetDomain() != "covey.dev" {
		t.Fatalf("error is %s %s %q, want %s %s", st.Code(), info.GetReason(), st.Message(), code, reason)
	}
	if i := slices.IndexFunc(words, func(w string) bool { return !strings.Contains(st.Message(), w) }); i >= 0 {
		t.Fatalf("error %q does not say %q", st.Message(), words[i])
	}
}
