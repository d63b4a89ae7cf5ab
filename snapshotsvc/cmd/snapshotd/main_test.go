package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/consul/consultest"
	"github.com/coveyhq/covey/services/chassis/pgtest"
)

// A test binary with this in its environment is snapshotd, with that configuration.
const childConfig = "COVEY_TEST_SNAPSHOTD_CONFIG"

func TestMain(m *testing.M) {
	if path := os.Getenv(childConfig); path != "" {
		fmt.Fprintln(os.Stderr, program.Run(context.Background(), []string{"--config", path}, os.Stdout))
		os.Exit(1)
	}
	os.Exit(pgtest.MainWithoutLeaks(m))
}

// configure writes a configuration as the local mesh does.
func configure(t *testing.T, listen, dsn, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshotd.yaml")
	err := os.WriteFile(path, fmt.Appendf(nil, `
chassis:
  service: covey-snapshot
  listen: %s
  log: {level: warn, format: json}
  telemetry: {trace_file: %s/trace.jsonl}
  metrics_listen: 127.0.0.1:0
database:
  dsn: %q
store:
  kind: directory
  directory: %s
`, listen, t.TempDir(), dsn, dir), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func client(t *testing.T, addr string) snapshotv1.RegistryServiceClient {
	t.Helper()
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return snapshotv1.NewRegistryServiceClient(c)
}

// saved is a snapshot of one object, which all of its parts are.
type saved struct {
	data []byte
	req  *snapshotv1.RegisterSnapshotRequest
}

func newSaved(size int) saved {
	const id = "snap_00000000000000000000000001"
	s := saved{data: make([]byte, size)}
	for i := range s.data {
		s.data[i] = byte(i * 7 >> 3)
	}
	object := func(name string) *snapshotv1.ObjectRef {
		sum := sha256.Sum256(s.data)
		return &snapshotv1.ObjectRef{Key: "snapshots/" + id + "/" + name, SizeBytes: int64(size), Sha256: sum[:]}
	}
	s.req = &snapshotv1.RegisterSnapshotRequest{
		TenantId: "acme", Kind: snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE, Name: "golden", HostId: "host-a",
		Manifest: &snapshotv1.Manifest{
			SnapshotId: id, Vcpus: 1, MemoryBytes: 1 << 20, DiskBytes: 1 << 20, CreateTime: timestamppb.New(time.Unix(1, 0)),
			State: object("state"), MemoryHeader: object("memory.hdr"), DiskHeader: object("disk.hdr"),
		},
	}
	return s
}

// upload brings what is missing of an object; it says how far it came. After the first piece it calls amid before each, if that is not nil.
func (s saved) upload(ctx context.Context, c snapshotv1.RegistryServiceClient, o *snapshotv1.ObjectRef, amid func(last bool)) (off int64, err error) {
	stream, err := c.UploadObject(ctx)
	if err != nil {
		return 0, err
	}
	if err := stream.Send(&snapshotv1.UploadObjectRequest{SnapshotId: s.req.GetManifest().GetSnapshotId(), Object: o}); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	m, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	off = m.GetStoredBytes()
	for err == nil && off < int64(len(s.data)) {
		p := s.data[off:min(off+1<<18, int64(len(s.data)))]
		if off > m.GetStoredBytes() && amid != nil {
			amid(off+int64(len(p)) == int64(len(s.data)))
		}
		if err = stream.Send(&snapshotv1.UploadObjectRequest{Offset: off, Data: p}); err == nil {
			off += int64(len(p))
		}
	}
	if m.GetComplete() {
		return off, nil
	}
	_, err = stream.Recv()
	return off, err
}

func (s saved) objects() []*snapshotv1.ObjectRef {
	m := s.req.GetManifest()
	return []*snapshotv1.ObjectRef{m.GetState(), m.GetMemoryHeader(), m.GetDiskHeader()}
}

func TestADaemonServesDrainsAndLeavesNothingRunning(t *testing.T) {
	conf, err := loadConfig(configure(t, "127.0.0.1:0", pgtest.Database(t), t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMain(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.daemon.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.run(ctx) }()
	c, s := client(t, m.daemon.Addr()), newSaved(3<<20)
	if _, err := c.RegisterSnapshot(t.Context(), s.req); err != nil {
		t.Fatal(err)
	}
	for _, o := range s.objects() {
		if _, err := s.upload(t.Context(), c, o, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.CommitSnapshot(t.Context(), &snapshotv1.CommitSnapshotRequest{SnapshotId: s.req.GetManifest().GetSnapshotId()}); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// process is snapshotd in a process of its own.
type process struct{ *exec.Cmd }

func start(t *testing.T, config string) process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childConfig+"="+config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process{cmd}.kill() })
	return process{cmd}
}

func (p process) kill() {
	if p.ProcessState == nil {
		p.Process.Kill()
		p.Wait()
	}
}

// freeAddr is an address that nobody listens on, and that nobody comes to while a daemon that was killed is started again: of an IP of its own.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestADaemonThatIsKilledAgainAndAgainLosesNoByteThatItHasAnsweredFor(t *testing.T) {
	addr, dir, dsn := freeAddr(t), t.TempDir(), pgtest.Database(t)
	config := configure(t, addr, dsn, dir)
	p := start(t, config)
	c, s := client(t, addr), newSaved(12<<20)
	if _, err := c.RegisterSnapshot(t.Context(), s.req); err != nil {
		t.Fatal(err)
	}
	kills := 0
	for _, o := range s.objects() {
		for {
			var amid func(last bool)
			if kills < 6 {
				amid = killer(t, p, dir)
			}
			_, err := s.upload(t.Context(), c, o, amid)
			if err == nil {
				break
			}
			if status.Code(err) != codes.Unavailable {
				t.Fatal(err)
			}
			kills++
			p.kill()
			p = start(t, config)
		}
	}
	if kills == 0 {
		t.Fatal("it was never killed")
	}
	if _, err := c.CommitSnapshot(t.Context(), &snapshotv1.CommitSnapshotRequest{SnapshotId: s.req.GetManifest().GetSnapshotId()}); err != nil {
		t.Fatal(err)
	}
	p.kill()
	start(t, config)
	for _, o := range s.objects() {
		if got := readAll(t, c, o.GetKey()); string(got) != string(s.data) {
			t.Fatalf("%s: %d bytes differ", o.GetKey(), len(got))
		}
	}
}

// killer kills as soon as there is some of an upload beyond what there is now, for which it waits before the last piece.
func killer(t *testing.T, p process, dir string) func(last bool) {
	before := parts(dir)
	return func(last bool) {
		limit, tick := time.NewTimer(time.Minute), time.NewTicker(time.Millisecond)
		defer limit.Stop()
		defer tick.Stop()
		for last && parts(dir) <= before {
			select {
			case <-tick.C:
			case <-limit.C:
				t.Fatal("nothing of the upload is on the disk")
			}
		}
		if parts(dir) > before {
			p.Process.Kill()
		}
	}
}

func parts(dir string) (n int64) {
	files, _ := filepath.Glob(dir + "/snapshots/*/*.part")
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			n += info.Size()
		}
	}
	return n
}

func readAll(t *testing.T, c snapshotv1.RegistryServiceClient, key string) (all []byte) {
	t.Helper()
	stream, err := c.ReadObject(t.Context(), &snapshotv1.ReadObjectRequest{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m.GetData()...)
	}
}

func TestADaemonWhoseDatabaseBreaksOffItsConnectionsServesOn(t *testing.T) {
	dsn := pgtest.Database(t)
	addr := freeAddr(t)
	start(t, configure(t, addr, dsn, t.TempDir()))
	c, s := client(t, addr), newSaved(100)
	if _, err := c.RegisterSnapshot(t.Context(), s.req); err != nil {
		t.Fatal(err)
	}
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	if _, err := admin.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"); err != nil {
		t.Fatal(err)
	}
	// A few calls may meet connections that are broken.
	for try := 0; ; try++ {
		_, err := c.GetManifest(t.Context(), &snapshotv1.GetManifestRequest{Snapshot: s.req.GetManifest().GetSnapshotId()})
		if err == nil {
			return
		}
		if status.Code(err) != codes.Unavailable || try == 50 {
			t.Fatal(err)
		}
	}
}

func TestTheConfigurationIsStrict(t *testing.T) {
	for want, text := range map[string]string{
		"database.dsn":    "store: {kind: directory, directory: /x}",
		"store.directory": "database: {dsn: x}",
		"store.kind":      "database: {dsn: x}\nstore: {kind: tape}",
		"store.s3":        "database: {dsn: x}\nstore: {kind: s3}",
		"stor":            "database: {dsn: x}\nstor: {}",
		"quotas.acme":     "database: {dsn: x}\nstore: {directory: /x}\nquotas: {acme: {bytes: -1}}",
	} {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadConfig(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v does not name %s", text, err, want)
		}
	}
}

func TestEveryMethodHasARowThatSaysWhoMayCall(t *testing.T) {
	conf, err := loadConfig(configure(t, "127.0.0.1:0", pgtest.Database(t), t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMain(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if lacks := callers.Lacks(m.daemon.Server().GetServiceInfo()); len(lacks) > 0 {
		t.Errorf("no row for %s", lacks)
	}
}

// TestAHostBringsItsOwnSnapshotsAndDropsNobodys is about a host that was taken over: it has an identity of the mesh, for its own host.
func TestAHostBringsItsOwnSnapshotsAndDropsNobodys(t *testing.T) {
	server := consultest.Start(t)
	conf, err := loadConfig(configure(t, "127.0.0.1:0", pgtest.Database(t), t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	mesh := chassis.Config{Service: caller.Host, Consul: chassis.ConsulConfig{Address: server.Addr, CheckInterval: 200 * time.Millisecond}, TLS: chassis.TLSConfig{Mode: chassis.TLSConsul}}
	conf.Chassis.Consul, conf.Chassis.TLS = mesh.Consul, mesh.TLS
	m, err := newMain(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	d, err := chassis.New(mesh, chassis.WithHostID("host-a"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	conn, err := d.Dial(caller.Snapshot, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	c, s := snapshotv1.NewRegistryServiceClient(conn), newSaved(100)
	id := s.req.GetManifest().GetSnapshotId()
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if _, err := c.RegisterSnapshot(ctx, s.req); err != nil {
		t.Errorf("its own: %v", err)
	}
	if _, err := c.AcquireLease(ctx, &snapshotv1.AcquireLeaseRequest{SnapshotId: id, Holder: "host/host-a", TtlSec: 60}); err != nil {
		t.Errorf("its own lease: %v", err)
	}
	if _, err := c.ListHostSnapshots(ctx, &snapshotv1.ListHostSnapshotsRequest{HostId: "host-a", SnapshotIds: []string{id}}); err != nil {
		t.Errorf("what it has: %v", err)
	}
	refused := func(what string, err error) {
		if status.Code(err) != codes.PermissionDenied || apierr.Reason(err) != "CALLER_NOT_ALLOWED" {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = c.DropSnapshot(ctx, &snapshotv1.DropSnapshotRequest{SnapshotId: id})
	refused("a drop", err)
	_, err = c.ListHostSnapshots(ctx, &snapshotv1.ListHostSnapshotsRequest{HostId: "host-b"})
	refused("what another has", err)
	for _, holder := range []string{"sandbox/sb_1", "host/host-b", "host-a"} {
		_, err = c.ReleaseLease(ctx, &snapshotv1.ReleaseLeaseRequest{SnapshotId: id, Holder: holder})
		refused("the lease of "+holder, err)
	}
	s.req.HostId = "host-b"
	_, err = c.RegisterSnapshot(ctx, s.req)
	refused("another's", err)
}
