package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"

	"github.com/coveyhq/covey/deploy/mesh"
)

// env is what a bench runs on: a mesh of its own, started when it is first asked for.
type env struct {
	runs int

	t    *mesh.Toolchain
	m    *mesh.Mesh
	dir  string
	conn *grpc.ClientConn

	sandboxes sandboxv1.SandboxServiceClient
	processes guestv1.ProcessServiceClient
	snapshots snapshotv1.SnapshotServiceClient
}

// toolchain prepares the machine.
func (e *env) toolchain(ctx context.Context) (*mesh.Toolchain, error) {
	if e.t != nil {
		return e.t, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	root, err := mesh.FindRoot(dir)
	if err != nil {
		return nil, err
	}
	// What tests use, where it was prepared for them.
	bin, consul, artifacts := os.Getenv("COVEY_BIN"), os.Getenv("COVEY_CONSUL_BIN"), os.Getenv("COVEY_ARTIFACTS")
	if bin != "" && consul != "" && artifacts != "" {
		e.t = &mesh.Toolchain{Root: root, Bin: bin, Consul: consul, Artifacts: artifacts, PostgresBin: "/usr/lib/postgresql/15/bin"}
		return e.t, nil
	}
	e.t, err = mesh.Prepare(ctx, root, mesh.NewProgress(os.Stdout), false)
	return e.t, err
}

// mesh starts a mesh with so many hosts and connects to its gateway; the context returned carries the API key.
func (e *env) start(ctx context.Context, hosts int) (context.Context, error) {
	t, err := e.toolchain(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll("/var/lib/covey", 0o755); err != nil {
		return nil, err
	}
	if e.dir, err = os.MkdirTemp("/var/lib/covey", "bench-"); err != nil {
		return nil, err
	}
	e.m, err = mesh.Up(ctx, t, mesh.Options{Dir: e.dir, Hosts: hosts, Listen: "127.0.0.1:0", Progress: mesh.NewProgress(os.Stdout)})
	if err != nil {
		return nil, err
	}
	key, err := e.m.APIKey()
	if err != nil {
		return nil, err
	}
	e.conn, err = grpc.NewClient(e.m.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	e.sandboxes = sandboxv1.NewSandboxServiceClient(e.conn)
	e.processes = guestv1.NewProcessServiceClient(e.conn)
	e.snapshots = snapshotv1.NewSnapshotServiceClient(e.conn)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key), nil
}

// close takes down what was started.
func (e *env) close(ctx context.Context) error {
	if e.conn != nil {
		e.conn.Close()
	}
	if e.m == nil {
		return nil
	}
	return e.m.Down(ctx)
}

// create makes a sandbox and returns it.
func (e *env) create(ctx context.Context, req *sandboxv1.CreateSandboxRequest) (*sandboxv1.Sandbox, error) {
	res, err := e.sandboxes.CreateSandbox(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", req.GetTemplate(), err)
	}
	return res.GetSandbox(), nil
}

func (e *env) delete(ctx context.Context, id string) error {
	_, err := e.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: id})
	return err
}

// exec runs a shell command as root and fails unless it succeeds.
func (e *env) exec(ctx context.Context, id, script string) (string, error) {
	res, err := e.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "/bin/sh", Args: []string{"-c", script}, User: "root"})
	if err != nil {
		return "", fmt.Errorf("exec in %s: %w", id, err)
	}
	if res.GetExitCode() != 0 {
		return "", fmt.Errorf("exec in %s: exit code %d: %s", id, res.GetExitCode(), res.GetStderr())
	}
	return res.GetStdout(), nil
}

// series is a list of measurements of one thing.
type series []float64

func (s series) median() float64 { return s.quantile(0.5) }

// quantile is the value below which a share q of the measurements lie, by nearest rank.
func (s series) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// row prints a line of a table: what was measured, its median and its extremes.
func (s series) row(name, unit string) {
	fmt.Printf("  %-36s median %9.1f %-4s min %9.1f  max %9.1f  n=%d\n", name, s.median(), unit, s.quantile(0), s.quantile(1), len(s))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
