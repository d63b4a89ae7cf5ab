package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/deploy/mesh"
	"github.com/coveyhq/covey/deploy/meshtest"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// suite is the mesh that all tests share, with clients through its gateway.
type suite struct {
	*meshtest.Suite
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

var s *suite

func TestMain(m *testing.M) {
	code, err := meshtest.Main(m, "e2e", mesh.Options{}, func(got *meshtest.Suite) { s = clients(got) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func clients(got *meshtest.Suite) *suite {
	return &suite{
		Suite: got, m: got.Mesh, key: got.Key, conn: got.Conn, sandboxes: got.Sandboxes, keys: sandboxv1.NewKeyServiceClient(got.Conn),
		processes: got.Processes, files: guestv1.NewFileServiceClient(got.Conn), snapshots: got.Snapshots, hosts: got.Hosts,
	}
}

// start skips the test where there is no mesh, and returns a context with the API key that bounds the test.
func start(t *testing.T) context.Context {
	t.Helper()
	return s.Start(t, 3*time.Minute)
}

// Short names for what all tests do.
var (
	as         = meshtest.As
	on         = meshtest.On
	small      = meshtest.Small
	eventually = meshtest.Eventually
)

// overrun is how much longer than on a quiet machine a wait may take.
const overrun = meshtest.Overrun

func patiently[R any](ctx context.Context, call func(context.Context) (R, error)) (R, error) {
	return meshtest.Patiently(ctx, call)
}

func create(t *testing.T, ctx context.Context, r *sandboxv1.CreateSandboxRequest) *sandboxv1.Sandbox {
	t.Helper()
	return s.Create(t, ctx, r)
}

func remove(t *testing.T, id string) { s.Remove(t, id) }

func sh(t *testing.T, ctx context.Context, id, script string) string {
	t.Helper()
	return s.Sh(t, ctx, id, script)
}

func get(t *testing.T, ctx context.Context, id string) *sandboxv1.Sandbox {
	t.Helper()
	return s.Get(t, ctx, id)
}

func pause(t *testing.T, ctx context.Context, id string) *sandboxv1.Sandbox {
	t.Helper()
	return s.Pause(t, ctx, id)
}

func durable(t *testing.T, ctx context.Context, id string) {
	t.Helper()
	s.Durable(t, ctx, id)
}

func template(t *testing.T, ctx context.Context, id, name string) *snapshotv1.Snapshot {
	t.Helper()
	return s.Template(t, ctx, id, name)
}

func cordon(t *testing.T, ctx context.Context, host string, is bool) {
	t.Helper()
	s.Cordon(t, ctx, host, is)
}

func kill(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	s.Kill(t, ctx, name)
}

func back(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	s.Back(t, ctx, name)
}

func revive(t *testing.T, ctx context.Context, host string) {
	t.Helper()
	s.Revive(t, ctx, host)
}

func burden(t *testing.T, ctx context.Context, id string, mb int) meshtest.Load {
	t.Helper()
	return s.Burden(t, ctx, id, mb)
}

func holdingsOf(id string) []string { return s.HoldingsOf(id) }

func drainHost(ctx context.Context, host string) ([]*sandboxv1.DrainHostResponse, error) {
	return s.DrainHost(ctx, host)
}
