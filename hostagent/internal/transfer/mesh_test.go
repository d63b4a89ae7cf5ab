package transfer_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/hostagent/internal/image"
	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
	"github.com/coveyhq/covey/hostagent/internal/transfer"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/pgtest"
)

// work is a directory of this run, and binary snapshotd, built into it by TestMain.
var work, binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "covey-transfer")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	work = dir
	binary = filepath.Join(dir, "snapshotd")
	build := exec.Command("go", "build", "-o", binary, "./cmd/snapshotd")
	build.Dir = "../../../snapshotsvc"
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building snapshotd: %v\n%s", err, out)
		return 1
	}
	return pgtest.MainWithoutLeaks(m)
}

// mesh is a snapshotd in a process of its own, and hosts.
type mesh struct {
	t       *testing.T
	dir     string
	addr    string
	conn    *grpc.ClientConn
	reg     snapshotv1.RegistryServiceClient
	process *exec.Cmd
	// wire joins registry and hosts where they have networks of their own; nil where all are on loopback.
	wire *wire

	// reads counts the ranges that hosts have asked the registry for, and sent the bytes that it has sent.
	reads, sent atomic.Int64
	// refuse makes the registry refuse new snapshots, as one of another release may.
	refuse atomic.Bool
	// uploads counts the objects that hosts began to upload, and hold keeps them from it.
	uploads atomic.Int64
	hold    atomic.Bool
	// broken counts uploads of objects that were taken over by others.
	broken atomic.Int64
	// manifests counts those that hosts asked for, and unheard loses the answers to leases.
	manifests atomic.Int64
	unheard   atomic.Bool

	// turn is that of hosts made from now on.
	turn time.Duration

	mu    sync.Mutex // guards hosts
	hosts map[string]*host
}

func newMesh(t *testing.T) *mesh { return newMeshOn(t, nil) }

func newMeshOn(t *testing.T, w *wire) *mesh {
	t.Helper()
	lis, err := w.listen(registrySite)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, dir: t.TempDir(), addr: lis.Addr().String(), hosts: map[string]*host{}, wire: w}
	// A port that was just free: the registry must come back at the same one.
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("chassis: {service: covey-snapshot, listen: %s, log: {level: warn}}\ndatabase: {dsn: %q}\nstore: {directory: %s}\n",
		m.addr, pgtest.Database(t), filepath.Join(m.dir, "objects"))
	if err := os.WriteFile(filepath.Join(m.dir, "snapshotd.yaml"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	m.conn = m.dialRegistry(registrySite)
	m.reg = snapshotv1.NewRegistryServiceClient(m.conn)
	m.startRegistry()
	t.Cleanup(m.killRegistry)
	return m
}

// dialRegistry calls the registry from a site.
func (m *mesh) dialRegistry(site string) *grpc.ClientConn {
	refuse := func(ctx context.Context, method string, q, r any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if method == snapshotv1.RegistryService_RegisterSnapshot_FullMethodName && m.refuse.Load() {
			return status.Error(codes.InvalidArgument, "manifest: what is this")
		}
		if method == snapshotv1.RegistryService_GetManifest_FullMethodName {
			m.manifests.Add(1)
		}
		err := next(ctx, method, q, r, cc, opts...)
		if method == snapshotv1.RegistryService_AcquireLease_FullMethodName && m.unheard.Load() {
			return status.Error(codes.Unavailable, "the answer is lost")
		}
		return err
	}
	return dial(m.t, m.addr, m.wire.from(site), grpc.WithUnaryInterceptor(refuse), grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		if method == snapshotv1.RegistryService_ReadObject_FullMethodName {
			m.reads.Add(1)
		}
		if method == snapshotv1.RegistryService_UploadObject_FullMethodName {
			if m.hold.Load() {
				return nil, status.Error(codes.Unavailable, "not now")
			}
			m.uploads.Add(1)
		}
		s, err := next(ctx, d, cc, method, opts...)
		return counted{s, m}, err
	}))
}

// counted adds up the bytes of objects that come, and uploads that are broken off.
type counted struct {
	grpc.ClientStream
	m *mesh
}

func (c counted) RecvMsg(m any) error {
	err := c.ClientStream.RecvMsg(m)
	if r, ok := m.(*snapshotv1.ReadObjectResponse); ok && err == nil {
		c.m.sent.Add(int64(len(r.GetData())))
	}
	if apierr.Reason(err) == "UPLOAD_TAKEN_OVER" {
		c.m.broken.Add(1)
	}
	return err
}

func dial(t *testing.T, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(grpc.ConnectParams{
		Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}, MinConnectTimeout: time.Second,
	}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// startRegistry returns once it answers.
func (m *mesh) startRegistry() {
	m.t.Helper()
	m.process = exec.Command(binary, "--config", filepath.Join(m.dir, "snapshotd.yaml"))
	m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m.process.Stderr = os.Stderr
	if err := m.wire.inside(registrySite, m.process.Start); err != nil {
		m.t.Fatal(err)
	}
	eventually(m.t, "the registry answers", func() bool {
		_, err := m.reg.ListHostSnapshots(m.t.Context(), &snapshotv1.ListHostSnapshotsRequest{HostId: "test"})
		return err == nil
	})
}

func (m *mesh) killRegistry() {
	if m.process.ProcessState == nil {
		m.process.Process.Kill()
		m.process.Wait()
	}
}

// Dial implements transfer.Peers.
func (m *mesh) Dial(id string) (grpc.ClientConnInterface, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.hosts[id]; h != nil {
		return h.conn, nil
	}
	return nil, fmt.Errorf("host %s is not known", id)
}

// host is a host's store and its transfers, with a real PeerService.
type host struct {
	*transfer.Transfer
	id    string
	m     *mesh
	dir   string
	store *snapstore.Store
	conn  *grpc.ClientConn
	addr  string
	// memory is the size of its VMs', bytes, and turn how long it waits for a peer that fetches; 0 is what is usual.
	memory int
	turn   time.Duration
	// served counts the ranges that other hosts have asked for, and lie makes their bytes wrong.
	served atomic.Int64
	lie    atomic.Bool
	stop   func()
}

func (m *mesh) host(id string) *host {
	m.t.Helper()
	h := &host{id: id, m: m, dir: m.t.TempDir(), memory: memoryBytes, turn: m.turn}
	h.start()
	return h
}

// start begins what an agent does, on what a former one has left.
func (h *host) start() {
	t := h.m.t
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), nil)).With("host", h.id)
	}
	var err error
	h.Transfer, err = transfer.New(transfer.Config{
		HostID: h.id, Dir: filepath.Join(h.dir, "transfer"), Registry: h.registry(), Peers: h.peers(), Report: 100 * time.Millisecond,
		Patience: time.Minute, Turn: h.turn, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	h.store, err = snapstore.New(snapstore.Config{
		Dir: filepath.Join(h.dir, "store"), Images: images(t), Fetcher: h.Fetcher(), Removed: h.Removed, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Attach(h.store)
	serving := h.serve()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		serving()
		cancel()
		<-done
		if err := h.store.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(h.stop)
}

// serve serves peers and makes the host known, until the returned function is called.
func (h *host) serve() (stop func()) {
	t := h.m.t
	lis, err := h.m.wire.listen(h.id)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.StreamInterceptor(func(s any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		h.served.Add(1)
		return next(s, &liar{ss, h})
	}))
	hostv1.RegisterPeerServiceServer(srv, transfer.NewPeerServer(h.store, slog.New(slog.DiscardHandler)))
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(lis) }()
	h.addr = lis.Addr().String()
	h.conn = dial(t, h.addr, h.m.wire.from(h.id))
	h.m.mu.Lock()
	h.m.hosts[h.id] = h
	h.m.mu.Unlock()
	return func() {
		h.m.mu.Lock()
		delete(h.m.hosts, h.id)
		h.m.mu.Unlock()
		srv.Stop()
		<-done
	}
}

// liar spoils what is sent where its host lies.
type liar struct {
	grpc.ServerStream
	h *host
}

func (l *liar) SendMsg(m any) error {
	if r, ok := m.(*hostv1.ReadObjectResponse); ok && l.h.lie.Load() {
		r.Data[len(r.Data)/2] ^= 1
	}
	return l.ServerStream.SendMsg(m)
}

const (
	memoryBytes = 4 << 20
	diskBytes   = 8 << 20
)

var imageDir = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(work, "images")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]any{"images": map[string]any{"tiny": map[string]any{"path": "tiny.img", "disk_mb": diskBytes >> 20}}})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "artifacts.json"), b, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "tiny.img"), noise(3<<20), 0o600)
	}
	return dir, err
})

// images are the same on every host.
func images(t *testing.T) *image.Catalog {
	t.Helper()
	dir, err := imageDir()
	if err != nil {
		t.Fatal(err)
	}
	c, err := image.NewCatalog(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// fakeMemory is a VM's memory in a buffer.
type fakeMemory struct {
	machine.Memory
	base  machine.Base
	draft *fakeDraft
}

func (m *fakeMemory) Base() machine.Base  { return m.base }
func (m *fakeMemory) WorkingSet() []int64 { return []int64{0, 8192} }
func (m *fakeMemory) BeginDraft(string, int64) (snapstore.MemoryDraft, error) {
	return m.draft, nil
}

// fakeDraft has one dirty range.
type fakeDraft struct {
	data []byte
	off  int64
}

func (d *fakeDraft) WriteDirty(p []byte, off int64) error {
	d.data, d.off = append([]byte(nil), p...), off
	return nil
}
func (d *fakeDraft) Ranges() []snapstore.Range {
	return []snapstore.Range{{Off: d.off, Len: int64(len(d.data))}}
}
func (d *fakeDraft) ReadAt(p []byte, off int64) (int, error) { return copy(p, d.data[off-d.off:]), nil }
func (d *fakeDraft) Commit(*snapstore.View) error            { return nil }
func (d *fakeDraft) Abort() error                            { return nil }

// fakeDisk is a disk with one written range.
type fakeDisk struct {
	machine.Disk
	base machine.Base
	data []byte
}

func (d *fakeDisk) Base() machine.Base                                   { return d.base }
func (d *fakeDisk) Freeze(context.Context) (snapstore.FrozenDisk, error) { return d, nil }
func (d *fakeDisk) Ranges() []snapstore.Range {
	return []snapstore.Range{{Off: 1 << 20, Len: int64(len(d.data))}}
}
func (d *fakeDisk) ReadAt(p []byte, off int64) (int, error) { return copy(p, d.data[off-1<<20:]), nil }
func (d *fakeDisk) Release() error                          { return nil }

const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

func newID() string {
	b := noise(26)
	for i := range b {
		b[i] = alphabet[b[i]%32]
	}
	return "snap_" + string(b)
}

// saved is a snapshot that was made, and what it holds.
type saved struct {
	machine.Manifest
	memory, disk []byte
}

// of is what a new VM of the image holds.
func (h *host) of() saved {
	t := h.m.t
	t.Helper()
	stock, err := h.store.OpenStock(t.Context(), "tiny")
	if err != nil {
		t.Fatal(err)
	}
	defer stock.Release()
	s := saved{memory: make([]byte, h.memory), disk: make([]byte, diskBytes)}
	if _, err := stock.Disk().ReadAt(t.Context(), s.disk, 0); err != nil {
		t.Fatal(err)
	}
	return s
}

// save makes a pause snapshot of a VM of the image that wrote some memory and disk.
func (h *host) save() saved {
	h.m.t.Helper()
	return h.saveAs(machine.PauseSnapshot, "", h.of())
}

// saveAs makes a snapshot of a VM that was started from another, or from the image, and wrote some memory and disk. Of the other only
// what making it needs is read.
func (h *host) saveAs(kind machine.SnapshotKind, name string, from saved) saved {
	t := h.m.t
	t.Helper()
	m := machine.Manifest{
		ID: newID(), Kind: kind, Name: name, Tenant: "acme", Driver: "qemu", Version: "7.2", Machine: "microvm-7.2", Accel: "tcg", VCPUs: 1,
		MemoryBytes: int64(h.memory), DiskBytes: diskBytes, KernelID: "k", Image: "tiny", SourceSandboxID: "sb_1", CreateTime: time.Now(),
	}
	mem, disk := &fakeMemory{draft: &fakeDraft{}}, &fakeDisk{data: noise(1 << 20)}
	if from.ID != "" {
		base := h.open(from.ID)
		defer base.Release()
		m.ParentID, m.Generation = from.ID, from.Generation+1
		mem.base, disk.base = base, base
	} else {
		stock, err := h.store.OpenImage(t.Context(), "tiny")
		if err != nil {
			t.Fatal(err)
		}
		defer stock.Release()
		disk.base = stock
	}
	d, err := h.store.Draft(t.Context(), m, mem, disk)
	if err != nil {
		t.Fatal(err)
	}
	dirty := noise(h.memory / 2)
	err = errors.Join(os.WriteFile(d.StatePath(), noise(60_000), 0o600), d.WriteDirty(dirty, 1<<20), d.TakeDisk(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	s := saved{memory: slices.Clone(from.memory), disk: slices.Clone(from.disk)}
	copy(s.memory[1<<20:], dirty)
	copy(s.disk[1<<20:], disk.data)
	if s.Manifest, _, err = d.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// open opens a snapshot on a host, from wherever it is.
func (h *host) open(id string) *snapstore.Snapshot {
	h.m.t.Helper()
	s, err := h.store.OpenSnapshot(h.m.t.Context(), id)
	if err != nil {
		h.m.t.Fatal(err)
	}
	return s
}

// contents reads all of a snapshot.
func (h *host) contents(id string) (memory, disk []byte) {
	t := h.m.t
	t.Helper()
	s := h.open(id)
	defer s.Release()
	memory, disk = make([]byte, s.Memory().Size()), make([]byte, s.Disk().Size())
	if _, err := s.Memory().ReadAt(t.Context(), memory, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Disk().ReadAt(t.Context(), disk, 0); err != nil {
		t.Fatal(err)
	}
	return memory, disk
}

// durable waits until the registry has all of a snapshot.
func (m *mesh) durable(id string) {
	m.t.Helper()
	eventually(m.t, "snapshot is durable", func() bool {
		r, err := m.reg.GetManifest(m.t.Context(), &snapshotv1.GetManifestRequest{Snapshot: id})
		return err == nil && r.GetSnapshot().GetState() == snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 2 minutes: %s", what)
		}
	}
}
