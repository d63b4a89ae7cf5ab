package main

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// agentEnv makes the test's binary an agent: of the configuration file that it names.
const agentEnv = "COVEY_TEST_AGENT"

// TestMain lets tests run agents as processes of their own, as only those can be killed.
func TestMain(m *testing.M) {
	path := os.Getenv(agentEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	if err := serveAloud(path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serveAloud is an agent that says its address on standard output.
func serveAloud(path string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conf, err := loadConfig(path)
	if err != nil {
		return err
	}
	m, err := newMain(ctx, conf)
	if err != nil {
		return err
	}
	if err := m.daemon.Listen(); err != nil {
		return err
	}
	fmt.Println(m.daemon.Addr())
	return m.run(ctx)
}

// agentProcess is an agent that can be killed.
type agentProcess struct {
	agentClient
	cmd *exec.Cmd
}

// spawnAgent starts an agent as a process of its own and waits until it serves.
func spawnAgent(t *testing.T, conf Config) *agentProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentEnv+"="+filepath.Join(filepath.Dir(conf.StateDir), configName))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := &agentProcess{cmd: cmd}
	t.Cleanup(a.kill)
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the agent did not come up: %v", err)
	}
	a.agentClient = dialAgent(t, strings.TrimSpace(addr))
	return a
}

// kill ends the agent as a crash would, and waits for its end; again it does nothing.
func (a *agentProcess) kill() {
	if a.cmd.ProcessState != nil {
		return
	}
	a.cmd.Process.Kill()
	a.cmd.Wait() // Its error is the signal.
}

// list is what the agent has, by id.
func (a agentClient) list(t *testing.T, ctx context.Context) map[string]*hostv1.HostSandbox {
	t.Helper()
	res, err := a.hosts.ListSandboxes(ctx, &hostv1.ListSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*hostv1.HostSandbox{}
	for _, sb := range res.GetSandboxes() {
		all[sb.GetSandboxId()] = sb
	}
	return all
}

// held is what the machine has of sandboxes of the agent: run directories, overlays, VMMs, memory sessions, and drafts.
func held(t *testing.T, conf Config) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{
		conf.StateDir + "/run/*", conf.StateDir + "/overlay/*.data", conf.StateDir + "/overlay/*.map", conf.StateDir + "/snapshots/drafts/*",
		conf.MemoryDir + "/*.draft", conf.MemoryDir + "/*.session",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, paths...)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		// A process that ends meanwhile is none of those looked for.
		if args, _ := os.ReadFile(p); strings.Contains(string(args), conf.StateDir+"/run/") {
			found = append(found, "VMM "+filepath.Base(filepath.Dir(p)))
		}
	}
	return found
}

func TestTheNextAgentTakesRunningSandboxesBack(t *testing.T) {
	conf := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	a := spawnAgent(t, conf)
	a.start(t, ctx, tiny("sb_kept"))
	a.sh(t, ctx, "sb_kept", "echo before > /tmp/mark; cp /tmp/mark /root/mark; sync; (while :; do echo x >> /dev/shm/beat; sleep 0.1; done) >/dev/null 2>&1 & true")
	before := a.list(t, ctx)["sb_kept"]
	a.kill()
	b := spawnAgent(t, conf)
	after := b.list(t, ctx)["sb_kept"]
	if after.GetState() != sandboxv1.State_STATE_RUNNING || after.GetPid() != before.GetPid() {
		t.Fatalf("it was %v, it is %v", before, after)
	}
	got := b.sh(t, ctx, "sb_kept", `echo 3 > /proc/sys/vm/drop_caches; cat /root/mark
		dd if=/dev/zero of=/root/big bs=1M count=8 2>/dev/null; sync; echo 3 > /proc/sys/vm/drop_caches; wc -c </root/big
		a=$(wc -c </dev/shm/beat); for i in $(seq 100); do b=$(wc -c </dev/shm/beat); [ $b -gt $a ] && break; sleep 0.2; done; [ $b -gt $a ] && echo beats`)
	if got != "before\n8388608\nbeats" {
		t.Errorf("after the agent's death it answers %q", got)
	}
	// What the former agent's memory session knew must not be missing in a pause by the next one.
	b.pause(t, ctx, "sb_kept", "snap_kept")
	b.resume(t, ctx, tiny("sb_kept"), "snap_kept")
	if got := b.sh(t, ctx, "sb_kept", "cat /tmp/mark; wc -c </root/big"); got != "before\n8388608" {
		t.Errorf("after a pause by the next agent it answers %q", got)
	}
}

func TestAnAgentThatCannotBeginToServeEndsNoSandbox(t *testing.T) {
	conf := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	a := spawnAgent(t, conf)
	a.start(t, ctx, tiny("sb_kept"))
	before := a.list(t, ctx)["sb_kept"]
	a.kill()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	unable := conf
	unable.Stop, unable.Chassis.Listen = stopDestroy, taken.Addr().String()
	if err := serve(ctx, unable); err == nil {
		t.Fatal("it serves on a port that another has")
	}
	if after := spawnAgent(t, conf).list(t, ctx)["sb_kept"]; after.GetState() != sandboxv1.State_STATE_RUNNING || after.GetPid() != before.GetPid() {
		t.Errorf("it was %v, it is %v", before, after)
	}
}

func TestAnAgentKilledAmidAPauseLeavesARunningSandboxOrAPausedOne(t *testing.T) {
	conf := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	a := spawnAgent(t, conf)
	a.start(t, ctx, tiny("sb_one"))
	became := map[sandboxv1.State]int{}
	for i := range 6 {
		a.sh(t, ctx, "sb_one", fmt.Sprintf("echo %d > /dev/shm/n; echo %d > /root/n; head -c 4000000 /dev/urandom > /dev/shm/filler", i, i))
		snap := fmt.Sprintf("snap_%d", i)
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			// The answer is lost with the agent.
			a.hosts.PauseSandbox(ctx, &hostv1.PauseSandboxRequest{SandboxId: "sb_one", SnapshotId: snap})
		}()
		moment := time.NewTimer(time.Duration(rand.IntN(200)) * time.Millisecond)
		<-moment.C
		a.kill()
		<-asked
		a = spawnAgent(t, conf)
		sb := a.list(t, ctx)["sb_one"]
		became[sb.GetState()]++
		switch sb.GetState() {
		case sandboxv1.State_STATE_RUNNING:
		case sandboxv1.State_STATE_PAUSED:
			if left := held(t, conf); len(left) > 0 {
				t.Fatalf("it is PAUSED, and there is left of it: %v", left)
			}
			a.resume(t, ctx, tiny("sb_one"), sb.GetSnapshotId())
		default:
			t.Fatalf("killed %d: it is %v", i, sb)
		}
		if got, want := a.sh(t, ctx, "sb_one", "cat /dev/shm/n /root/n"), fmt.Sprintf("%d\n%d", i, i); got != want {
			t.Fatalf("killed %d: it answers %q, want %q", i, got, want)
		}
	}
	t.Logf("after the next agent's start it was: %v", became)
}

func TestAnAgentKilledAmidAStartLeavesNothingHalfMade(t *testing.T) {
	conf := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	a := spawnAgent(t, conf)
	a.start(t, ctx, tiny("sb_first"))
	if _, err := a.hosts.DestroySandbox(ctx, &hostv1.DestroySandboxRequest{SandboxId: "sb_first"}); err != nil {
		t.Fatal(err)
	}
	became := map[sandboxv1.State]int{}
	for i := range 6 {
		id := fmt.Sprintf("sb_%d", i)
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			a.hosts.StartSandbox(ctx, &hostv1.StartSandboxRequest{Spec: tiny(id), RestoreId: "rst_" + id})
		}()
		moment := time.NewTimer(time.Duration(rand.IntN(700)) * time.Millisecond)
		<-moment.C
		a.kill()
		<-asked
		a = spawnAgent(t, conf)
		sb := a.list(t, ctx)[id]
		became[sb.GetState()]++
		if sb.GetState() == sandboxv1.State_STATE_RUNNING {
			a.sh(t, ctx, id, "true")
			if _, err := a.hosts.DestroySandbox(ctx, &hostv1.DestroySandboxRequest{SandboxId: id}); err != nil {
				t.Fatal(err)
			}
		} else if sb != nil && sb.GetState() != sandboxv1.State_STATE_FAILED {
			t.Fatalf("killed %d: it is %v", i, sb)
		}
		if left := held(t, conf); len(left) > 0 {
			t.Fatalf("killed %d: it is %s, and there is left of it: %v", i, sb.GetState(), left)
		}
		// The same sandbox can be started now.
		a.start(t, ctx, tiny(id))
		if _, err := a.hosts.DestroySandbox(ctx, &hostv1.DestroySandboxRequest{SandboxId: id}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("after the next agent's start it was: %v", became)
}
