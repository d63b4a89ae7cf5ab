package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/coveyhq/covey/deploy/mesh"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// suite is the mesh that all tests share, with clients through its gateway.
type suite struct {
	m         *mesh.Mesh
	key       string
	conn      *grpc.ClientConn
	sandboxes sandboxv1.SandboxServiceClient
	keys      sandboxv1.KeyServiceClient
	processes guestv1.ProcessServiceClient
	files     guestv1.FileServiceClient
	snapshots snapshotv1.SnapshotServiceClient
	hosts     schedulerv1.HostsServiceClient
}

// s is set unless the machine was not prepared; whyNot then says what to do.
var (
	s      *suite
	whyNot string
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	t, err := prepared()
	if err != nil {
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
			return 1, err
		}
		whyNot = err.Error()
		return m.Run(), nil
	}
	ctx := context.Background()
	if err := os.MkdirAll("/var/lib/covey", 0o755); err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("/var/lib/covey", "e2e-")
	if err != nil {
		return 1, err
	}
	before := mesh.LookAround(dir)
	delete(before, "directory") // It is there, and empty.
	up, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	mm, err := mesh.Up(up, t, mesh.Options{Dir: dir, Listen: "127.0.0.1:0", Progress: mesh.NewProgress(os.Stdout)})
	if err == nil {
		s, err = connect(mm)
	}
	if err == nil {
		code = m.Run()
		s.conn.Close()
	}
	if keep := os.Getenv("COVEY_E2E_LOGS"); keep != "" && (err != nil || code != 0) {
		if e := os.CopyFS(keep, os.DirFS(filepath.Join(dir, "logs"))); e != nil {
			fmt.Fprintln(os.Stderr, "e2e: logs could not be kept:", e)
		}
	}
	if mm == nil {
		return 1, err
	}
	if e := mm.Down(ctx); e != nil {
		return 1, fmt.Errorf("taking the mesh down: %w (%v)", e, err)
	}
	if left := mesh.LookAround(dir).Since(before); len(left) > 0 {
		return 1, fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	return code, err
}

// prepared finds what `make test` has prepared.
func prepared() (*mesh.Toolchain, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	root, err := mesh.FindRoot(dir)
	if err != nil {
		return nil, err
	}
	t := &mesh.Toolchain{
		Root: root, Bin: os.Getenv("COVEY_BIN"), Consul: os.Getenv("COVEY_CONSUL_BIN"), Artifacts: os.Getenv("COVEY_ARTIFACTS"),
		PostgresBin: "/usr/lib/postgresql/15/bin",
	}
	if t.Bin == "" || t.Consul == "" || t.Artifacts == "" || os.Geteuid() != 0 {
		return nil, fmt.Errorf("needs root and COVEY_BIN, COVEY_CONSUL_BIN and COVEY_ARTIFACTS: `make test` prepares and sets them")
	}
	return t, nil
}

func connect(m *mesh.Mesh) (*suite, error) {
	key, err := m.APIKey()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(m.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, err
	}
	return &suite{
		m: m, key: key, conn: conn, sandboxes: sandboxv1.NewSandboxServiceClient(conn), keys: sandboxv1.NewKeyServiceClient(conn),
		processes: guestv1.NewProcessServiceClient(conn), files: guestv1.NewFileServiceClient(conn),
		snapshots: snapshotv1.NewSnapshotServiceClient(conn), hosts: schedulerv1.NewHostsServiceClient(conn),
	}, nil
}

// start skips the test where there is no mesh, and returns a context with the API key that bounds the test.
func start(t *testing.T) context.Context {
	t.Helper()
	if s == nil {
		t.Skip(whyNot)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx = as(ctx, s.key)
	// A test before may have ended daemons or cordoned hosts: what puts that right takes a moment to be seen.
	eventually(t, time.Minute, "every host is ready", func() bool {
		res, err := s.hosts.ListHosts(ctx, &schedulerv1.ListHostsRequest{})
		return err == nil && len(res.GetHosts()) == len(s.m.Hosts) && !slices.ContainsFunc(res.GetHosts(), func(h *schedulerv1.Host) bool {
			return h.GetState() != schedulerv1.HostState_HOST_STATE_READY
		})
	})
	return ctx
}

// as calls with an API key.
func as(ctx context.Context, key string) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.Pairs("authorization", "Bearer "+key))
}
