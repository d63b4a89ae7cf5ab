package main

import (
	"context"
	"encoding/json"
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

// agentClient calls an agent.
type agentClient struct {
	hosts   hostv1.HostServiceClient
	process guestv1.ProcessServiceClient
}

func dialAgent(t *testing.T, addr string) agentClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return agentClient{hostv1.NewHostServiceClient(conn), guestv1.NewProcessServiceClient(conn)}
}

// agentUnderTest is a real agent in this process, without Consul.
type agentUnderTest struct {
	agentClient
	stop context.CancelFunc
	done chan error
}

// testConfig is the configuration of an agent whose state goes with the test; more is added to its file.
func testConfig(t *testing.T, more ...string) Config {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "covey-agent-")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, configName)
	yaml := fmt.Sprintf("chassis: {listen: '127.0.0.1:0', log: {level: warn}}\nhost_id: test\nstate_dir: %s/state\nmemory_dir: /dev/shm%s\nartifacts: %s\n"+
		"capacity: {vcpus: 16, memory_mb: 8192, disk_mb: 200000, slots: 16}\n%s\n", dir, dir, artifacts(t), strings.Join(more, "\n"))
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

// configName is the configuration's file, beside the state directory.
const configName = "hostagentd.yaml"

func startAgent(t *testing.T, conf Config) *agentUnderTest {
	t.Helper()
	m, err := newMain(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &agentUnderTest{stop: stop, done: make(chan error, 1)}
	if err := m.daemon.Listen(); err != nil {
		t.Fatal(err)
	}
	go func() { a.done <- m.run(ctx) }()
	t.Cleanup(func() { a.end(t) })
	a.agentClient = dialAgent(t, m.daemon.Addr())
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

func (a agentClient) start(t *testing.T, ctx context.Context, spec *hostv1.SandboxSpec) *hostv1.StartSandboxResponse {
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

func (a agentClient) sh(t *testing.T, ctx context.Context, id, script string) string {
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

// pause saves a sandbox and ends its VM.
func (a agentClient) pause(t *testing.T, ctx context.Context, id, snapshot string) {
	t.Helper()
	p, err := a.hosts.PauseSandbox(ctx, &hostv1.PauseSandboxRequest{SandboxId: id, SnapshotId: snapshot})
	if err != nil {
		t.Fatalf("pause %s: %v", id, err)
	}
	t.Logf("%s paused: %v", id, p.GetStats())
}

// resume starts a paused sandbox again.
func (a agentClient) resume(t *testing.T, ctx context.Context, spec *hostv1.SandboxSpec, snapshot string) *hostv1.StartSandboxResponse {
	t.Helper()
	spec.Image, spec.SnapshotId, spec.Kind = "", snapshot, sandboxv1.StartKind_START_KIND_RESUME
	res, err := a.hosts.StartSandbox(ctx, &hostv1.StartSandboxRequest{Spec: spec, RestoreId: "rst_" + snapshot})
	if err != nil {
		t.Fatalf("resume %s from %s: %v", spec.GetSandboxId(), snapshot, err)
	}
	return res
}

func tiny(id string) *hostv1.SandboxSpec {
	return &hostv1.SandboxSpec{SandboxId: id, Image: "tiny", Vcpus: 1, MemoryMb: 256, DiskMb: 512}
}

func TestASandboxIsBootedSpawnedPausedAndResumed(t *testing.T) {
	conf := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
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
		a.pause(t, ctx, "sb_one", snap)
		a.resume(t, ctx, tiny("sb_one"), snap)
		if got := a.sh(t, ctx, "sb_one", "cat /root/file; a=$(wc -c </tmp/beat); for i in $(seq 100); do b=$(wc -c </tmp/beat); [ $b -gt $a ] && break; sleep 0.2; done; [ $b -gt $a ] && echo beats"); got != "kept\nbeats" {
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

func TestAnImageThatCannotBeReadKeepsAnAgentFromNothingElse(t *testing.T) {
	conf := testConfig(t)
	raw, err := os.ReadFile(filepath.Join(conf.Artifacts, "artifacts.json"))
	if err != nil {
		t.Fatal(err)
	}
	var about map[string]any
	if err := json.Unmarshal(raw, &about); err != nil {
		t.Fatal(err)
	}
	about["images"].(map[string]any)["broken"] = map[string]any{"path": "images/none.ext4", "disk_mb": 64}
	if raw, err = json.Marshal(about); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	entries, err := os.ReadDir(conf.Artifacts)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Symlink(filepath.Join(conf.Artifacts, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, "artifacts.json")), os.WriteFile(filepath.Join(dir, "artifacts.json"), raw, 0o600)); err != nil {
		t.Fatal(err)
	}
	conf.Artifacts = dir
	a := startAgent(t, conf)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	a.start(t, ctx, tiny("sb_other"))
	broken := tiny("sb_broken")
	broken.Image = "broken"
	if _, err := a.hosts.StartSandbox(ctx, &hostv1.StartSandboxRequest{Spec: broken, RestoreId: "rst_broken"}); err == nil {
		t.Error("it is started from an image that is not there")
	}
}
