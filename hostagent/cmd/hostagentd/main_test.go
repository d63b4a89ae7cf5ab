package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// artifacts is the directory that guest-build has made; without it the test is skipped.
func artifacts(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("COVEY_ARTIFACTS")
	if dir != "" && os.Geteuid() == 0 {
		return dir
	}
	why := "needs root and COVEY_ARTIFACTS, a directory that guest-build has made: run `make test`"
	if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
		t.Fatal(why)
	}
	t.Skip(why)
	return ""
}

// agentUnderTest is a real agent in this process, without Consul.
type agentUnderTest struct {
	conf    Config
	main    *Main
	stop    context.CancelFunc
	done    chan error
	hosts   hostv1.HostServiceClient
	process guestv1.ProcessServiceClient
}

func testConfig(t *testing.T) Config {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "covey-agent-")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "hostagentd.yaml")
	yaml := fmt.Sprintf("chassis: {listen: '127.0.0.1:0', log: {level: info}}\nhost_id: test\nstate_dir: %s/state\nmemory_dir: /dev/shm%s\nartifacts: %s\n"+
		"capacity: {vcpus: 16, memory_mb: 8192, disk_mb: 200000, slots: 16}\n", dir, dir, artifacts(t))
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reap(context.Background(), conf, os.Stderr); err != nil {
			t.Errorf("reap: %v", err)
		}
		if err := errors.Join(os.RemoveAll(dir), os.RemoveAll("/dev/shm"+dir)); err != nil {
			t.Error(err)
		}
	})
	return conf
}

func startAgent(t *testing.T, conf Config) *agentUnderTest {
	t.Helper()
	m, err := newMain(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &agentUnderTest{conf: conf, main: m, stop: stop, done: make(chan error, 1)}
	if err := m.daemon.Listen(); err != nil {
		t.Fatal(err)
	}
	go func() { a.done <- m.run(ctx) }()
	conn, err := grpc.NewClient(m.daemon.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	a.hosts, a.process = hostv1.NewHostServiceClient(conn), guestv1.NewProcessServiceClient(conn)
	t.Cleanup(func() {
		conn.Close()
		a.end(t)
	})
	return a
}

// end ends the agent as a signal would; again it does nothing.
func (a *agentUnderTest) end(t *testing.T) {
	t.Helper()
	if a.stop == nil {
		return
	}
	a.stop()
	a.stop = nil
	if err := <-a.done; err != nil {
		t.Errorf("the agent ended with: %v", err)
	}
}

func (a *agentUnderTest) start(t *testing.T, ctx context.Context, spec *hostv1.SandboxSpec) *hostv1.StartSandboxResponse {
	t.Helper()
	res, err := a.hosts.StartSandbox(ctx, &hostv1.StartSandboxRequest{Spec: spec, RestoreId: "rst_" + spec.GetSandboxId()})
	if err != nil {
		t.Fatalf("start %s: %v", spec.GetSandboxId(), err)
	}
	var phases []string
	for _, p := range res.GetReceipt().GetPhases() {
		phases = append(phases, fmt.Sprintf("%s %.1f", p.GetName(), float64(p.GetDurationUsec())/1000))
	}
	t.Logf("%s: %s in %.1f ms: %s", spec.GetSandboxId(), res.GetReceipt().GetKind(), float64(res.GetReceipt().GetTotalUsec())/1000, strings.Join(phases, ", "))
	return res
}

func (a *agentUnderTest) sh(t *testing.T, ctx context.Context, id, script string) string {
	t.Helper()
	began := time.Now()
	res, err := a.process.Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "/bin/sh", Args: []string{"-c", script}, User: "root"})
	if err != nil {
		t.Fatalf("exec %q in %s: %v", script, id, err)
	}
	if res.GetExitCode() != 0 {
		t.Fatalf("exec %q in %s: exit code %d: %s%s", script, id, res.GetExitCode(), res.GetStderr(), res.GetError())
	}
	t.Logf("%s: %q took %.1f ms", id, script, float64(time.Since(began).Microseconds())/1000)
	return strings.TrimSpace(res.GetStdout())
}

func tiny(id string) *hostv1.SandboxSpec {
	return &hostv1.SandboxSpec{SandboxId: id, Image: "tiny", Vcpus: 1, MemoryMb: 256, DiskMb: 512}
}

func TestASandboxIsBootedSpawnedPausedAndResumed(t *testing.T) {
	conf := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	a := startAgent(t, conf)

	cold := tiny("sb_cold")
	cold.ColdBoot = true
	if k := a.start(t, ctx, cold).GetReceipt().GetKind(); k != sandboxv1.StartKind_START_KIND_COLD_BOOT {
		t.Errorf("the cold start was a %s", k)
	}
	if got := a.sh(t, ctx, "sb_cold", "echo $((6*7))"); got != "42" {
		t.Fatalf("it answers %q", got)
	}

	a.start(t, ctx, tiny("sb_first")) // makes the template
	if k := a.start(t, ctx, tiny("sb_one")).GetReceipt().GetKind(); k != sandboxv1.StartKind_START_KIND_SPAWN {
		t.Errorf("the second start was a %s", k)
	}
	a.sh(t, ctx, "sb_one", "true")
	a.sh(t, ctx, "sb_one", "echo kept > /root/file; (while :; do echo x >> /tmp/beat; sleep 0.2; done) >/dev/null 2>&1 & echo started")
	for i := range 3 {
		snap := fmt.Sprintf("snap_pause%d", i)
		p, err := a.hosts.PauseSandbox(ctx, &hostv1.PauseSandboxRequest{SandboxId: "sb_one", SnapshotId: snap})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("pause: %v", p.GetStats())
		spec := tiny("sb_one")
		spec.Image, spec.SnapshotId, spec.Kind = "", snap, sandboxv1.StartKind_START_KIND_RESUME
		a.hosts.StartSandbox(ctx, &hostv1.StartSandboxRequest{Spec: spec, RestoreId: "rst_again" + snap})
		if got := a.sh(t, ctx, "sb_one", "cat /root/file; a=$(wc -c </tmp/beat); sleep 1; b=$(wc -c </tmp/beat); [ $b -gt $a ] && echo beats"); got != "kept\nbeats" {
			t.Fatalf("after the resume it answers %q", got)
		}
	}
	f, err := a.hosts.ForkSandbox(ctx, &hostv1.ForkSandboxRequest{SandboxId: "sb_one", SnapshotId: "snap_fork", CopyIds: []string{"sb_x", "sb_y"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("fork: %v", f.GetStats())
	if x, y := a.sh(t, ctx, "sb_x", "cat /proc/sys/kernel/random/uuid"), a.sh(t, ctx, "sb_y", "cat /proc/sys/kernel/random/uuid"); x == y {
		t.Errorf("two copies drew the same uuid %s", x)
	}
	for _, id := range []string{"sb_cold", "sb_first", "sb_one", "sb_x", "sb_y"} {
		if _, err := a.hosts.DestroySandbox(ctx, &hostv1.DestroySandboxRequest{SandboxId: id}); err != nil {
			t.Errorf("destroy %s: %v", id, err)
		}
	}
	_, err = a.process.Exec(ctx, &guestv1.ExecRequest{SandboxId: "sb_one", Cmd: "true"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("exec in a destroyed sandbox: %v", err)
	}
}

func TestTheNextAgentTakesRunningSandboxesBack(t *testing.T) {
	conf := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	a := startAgent(t, conf)
	a.start(t, ctx, tiny("sb_kept"))
	a.sh(t, ctx, "sb_kept", "echo before > /tmp/mark")
	a.end(t)
	b := startAgent(t, conf)
	if got := b.sh(t, ctx, "sb_kept", "cat /tmp/mark; dd if=/dev/zero of=/root/big bs=1M count=8 2>/dev/null; wc -c </root/big"); got != "before\n8388608" {
		t.Errorf("after the agent's restart it answers %q", got)
	}
}
