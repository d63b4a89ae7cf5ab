package meshtest

import (
	"context"
	"fmt"
	"net"
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

// Suite is the mesh that all tests of a package share, with clients through its gateway.
type Suite struct {
	Mesh       *mesh.Mesh
	Key        string
	Conn       *grpc.ClientConn
	Sandboxes  sandboxv1.SandboxServiceClient
	Operations sandboxv1.OperationsServiceClient
	Processes  guestv1.ProcessServiceClient
	Snapshots  snapshotv1.SnapshotServiceClient
	Hosts      schedulerv1.HostsServiceClient

	// whyNot says why there is no mesh, and what to do; Mesh is nil then.
	whyNot string
}

// parent is where meshes get a directory of their own: short, because sockets' paths are.
const parent = "/var/lib/covey"

// Main starts a mesh, gives it to use, runs the package's tests, takes the mesh down, and fails if anything is left of it. name begins the name
// of its directory. COVEY_E2E_LOGS names a directory that the daemons' logs are copied to after a failure.
func Main(m *testing.M, name string, o mesh.Options, use func(*Suite)) (code int, err error) {
	t, err := Prepared()
	if err != nil {
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
			return 1, err
		}
		use(&Suite{whyNot: err.Error()})
		return m.Run(), nil
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return 1, err
	}
	if o.Dir, err = os.MkdirTemp(parent, name+"-"); err != nil {
		return 1, err
	}
	before := mesh.LookAround(o.Dir)
	delete(before, "directory") // It is there, and empty.
	o.Listen, o.Progress = "127.0.0.1:0", mesh.NewProgress(os.Stdout)
	up, cancel := context.WithTimeout(context.Background(), Overrun*4*time.Minute)
	defer cancel()
	mm, err := mesh.Up(up, t, o)
	var s *Suite
	if err == nil {
		s, err = connect(mm)
	}
	if err == nil {
		use(s)
		code = m.Run()
		s.Conn.Close()
	}
	if keep := os.Getenv("COVEY_E2E_LOGS"); keep != "" && (err != nil || code != 0) {
		if e := os.CopyFS(keep, os.DirFS(filepath.Join(o.Dir, "logs"))); e != nil {
			fmt.Fprintln(os.Stderr, name+": logs could not be kept:", e)
		}
	}
	if mm == nil {
		return 1, err
	}
	if e := mm.Down(context.Background()); e != nil {
		return 1, fmt.Errorf("taking the mesh down: %w (%v)", e, err)
	}
	if left := mesh.LookAround(o.Dir).Since(before); len(left) > 0 {
		return 1, fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	return code, err
}

// Prepared finds what `make test` has prepared.
func Prepared() (*mesh.Toolchain, error) {
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

func connect(m *mesh.Mesh) (*Suite, error) {
	key, err := m.APIKey()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+m.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return m.Dial(ctx, "tcp", addr) }))
	if err != nil {
		return nil, err
	}
	return &Suite{
		Mesh: m, Key: key, Conn: conn, Sandboxes: sandboxv1.NewSandboxServiceClient(conn), Operations: sandboxv1.NewOperationsServiceClient(conn),
		Processes: guestv1.NewProcessServiceClient(conn), Snapshots: snapshotv1.NewSnapshotServiceClient(conn),
		Hosts: schedulerv1.NewHostsServiceClient(conn),
	}, nil
}

// Start skips the test where there is no mesh, and returns a context with the API key that bounds the test. within is what it takes at most on a quiet machine.
func (s *Suite) Start(t *testing.T, within time.Duration) context.Context {
	t.Helper()
	if s.Mesh == nil {
		t.Skip(s.whyNot)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within*Overrun)
	t.Cleanup(cancel)
	ctx = As(ctx, s.Key)
	s.AllReady(t, ctx)
	return ctx
}

// AllReady waits until every host is ready. A test before may have ended daemons or cordoned hosts: what puts that right takes a moment to
// be seen.
func (s *Suite) AllReady(t *testing.T, ctx context.Context) {
	t.Helper()
	Eventually(t, time.Minute, "every host is ready", func() bool {
		res, err := s.Hosts.ListHosts(ctx, &schedulerv1.ListHostsRequest{})
		return err == nil && len(res.GetHosts()) == len(s.Mesh.Hosts) && !slices.ContainsFunc(res.GetHosts(), func(h *schedulerv1.Host) bool {
			return h.GetState() != schedulerv1.HostState_HOST_STATE_READY
		})
	})
}

// As calls with an API key.
func As(ctx context.Context, key string) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.Pairs("authorization", "Bearer "+key))
}

// Cleanup does something at the test's end, with the suite's key.
func (s *Suite) Cleanup(t *testing.T, do func(context.Context)) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(As(context.Background(), s.Key), Overrun*time.Minute)
		defer cancel()
		do(ctx)
	})
}
