package e2e

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jackc/pgx/v5"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
)

// kill ends a process of the mesh as a crash would, and starts it again at the test's end if the test has not.
func kill(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	if err := s.m.Kill(ctx, name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(as(context.Background(), s.key), time.Minute)
		defer cancel()
		back(t, ctx, name)
	})
}

// back starts a process of the mesh again and waits until the mesh serves as before.
func back(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	if s.m.Process(name).Alive() {
		return
	}
	if host, is := strings.CutPrefix(name, "hostagentd-"); is {
		revive(t, ctx, host)
		return
	}
	eventually(t, 45*time.Second, name+" is back", func() bool {
		if err := s.m.Restart(ctx, name); err != nil {
			return false // PostgreSQL, while what its death has left still ends.
		}
		if name == "postgres" && !databaseAnswers(ctx) || name == "consul" && !accepts(s.m.ConsulAddr) {
			return false
		}
		return s.m.Ready(ctx) == nil
	})
}

func databaseAnswers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, s.m.DSN)
	if err != nil {
		return false
	}
	defer c.Close(ctx)
	return c.Ping(ctx) == nil
}

func accepts(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// settled waits until a sandbox is running or paused, or gone with the reason, and returns it.
func settled(t *testing.T, ctx context.Context, id string) *sandboxv1.Sandbox {
	t.Helper()
	var sb *sandboxv1.Sandbox
	eventually(t, time.Minute, id+" is settled", func() bool {
		res, err := s.sandboxes.GetSandbox(ctx, &sandboxv1.GetSandboxRequest{SandboxId: id})
		sb = res.GetSandbox()
		switch sb.GetState() {
		case sandboxv1.State_STATE_RUNNING, sandboxv1.State_STATE_PAUSED:
			return err == nil
		case sandboxv1.State_STATE_FAILED, sandboxv1.State_STATE_STOPPED:
			return sb.GetReason() != ""
		}
		return false
	})
	return sb
}

// intact reads all that the registry calls durable and fails the test if a byte of it is missing or wrong.
func intact(t *testing.T, ctx context.Context) {
	t.Helper()
	c, err := pgx.Connect(ctx, s.m.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	builds := glob(filepath.Join(s.m.Dir, "objects", "builds", "*"))
	if len(builds) == 0 {
		t.Fatal("the object store has no builds")
	}
	out, err := exec.CommandContext(ctx, filepath.Join(s.m.Bin, "snapinspect"), append([]string{"-verify"}, builds...)...).CombinedOutput()
	if err != nil && len(glob(filepath.Join(s.m.Dir, "objects", "builds", "*"))) == len(builds) { // Else collected meanwhile.
		t.Errorf("stored builds are damaged: %v\n%s", err, out)
	}
}

// onTheOther resumes a paused sandbox on the host that has not made its snapshot, and checks its load there.
func (l load) onTheOther(t *testing.T, ctx context.Context) {
	t.Helper()
	sb := get(t, ctx, l.id)
	durable(t, ctx, l.id)
	res, err := patiently(ctx, func(ctx context.Context) (*sandboxv1.ResumeSandboxResponse, error) {
		return s.sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: l.id, HostId: otherHost(sb.GetHostId())})
	})
	if err != nil {
		t.Fatalf("resume on %s: %v", otherHost(sb.GetHostId()), err)
	}
	if res.GetSandbox().GetHostId() == sb.GetHostId() {
		t.Fatalf("it runs on %s", sb.GetHostId())
	}
	l.check(t, ctx)
}

func TestTheRegistryDiesDuringAnUploadAndWhatWasPausedBecomesDurableAfterwards(t *testing.T) {
	ctx := start(t)
	sb := placed(t, ctx, "host-a")
	l := burden(t, ctx, sb.GetId(), 24)
	paused := make(chan *sandboxv1.Sandbox, 1)
	var wg sync.WaitGroup
	wg.Go(func() { paused <- pause(t, ctx, sb.GetId()) })
	eventually(t, 30*time.Second, "something is uploaded", func() bool {
		return len(glob(filepath.Join(s.m.Dir, "objects", "*", "*.part*"))) > 0 || len(paused) > 0
	})
	kill(t, ctx, "snapshotd")
	wg.Wait()
	if (<-paused).GetDurable() {
		t.Log("the upload was faster than the death")
	}
	// A start that needs nobody else's data goes on without a registry, and so does what runs.
	if got := get(t, ctx, sb.GetId()); got.GetState() != sandboxv1.State_STATE_PAUSED {
		t.Errorf("without a registry it is %s", got.GetState())
	}
	back(t, ctx, "snapshotd")
	l.onTheOther(t, ctx)
	intact(t, ctx)
}

func TestTheRegistryDiesWhileASandboxIsResumedElsewhere(t *testing.T) {
	ctx := start(t)
	sb := placed(t, ctx, "host-a")
	l := burden(t, ctx, sb.GetId(), 16)
	pause(t, ctx, sb.GetId())
	durable(t, ctx, sb.GetId())
	done := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_, err := s.sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: sb.GetId(), HostId: "host-b"})
		done <- err
	})
	eventually(t, 20*time.Second, "it is being resumed", func() bool { return get(t, ctx, sb.GetId()).GetState() != sandboxv1.State_STATE_PAUSED })
	kill(t, ctx, "snapshotd")
	var err error
	select {
	case err = <-done:
	case <-time.After(5 * time.Second):
		back(t, ctx, "snapshotd")
		err = <-done
	}
	back(t, ctx, "snapshotd")
	now := settled(t, ctx, sb.GetId())
	t.Logf("the resume answered %v; it is %s", err, now.GetState())
	if now.GetState() == sandboxv1.State_STATE_PAUSED {
		l.onTheOther(t, ctx)
		return
	}
	l.check(t, ctx)
}

// drained drains a host while something dies, and drains again until it is empty; all loads must be well elsewhere.
func drainedDespite(t *testing.T, dies func(context.Context)) {
	ctx := start(t)
	var loads []load
	for range 3 {
		loads = append(loads, burden(t, ctx, placed(t, ctx, "host-a").GetId(), 2))
	}
	t.Cleanup(func() { cordon(t, as(context.Background(), s.key), "host-a", false) })
	var wg sync.WaitGroup
	wg.Go(func() {
		all, err := drainHost(ctx, "host-a")
		t.Logf("the drain that was disturbed: %d events, %v", len(all), err)
	})
	eventually(t, 20*time.Second, "one is being moved", func() bool { return get(t, ctx, loads[0].id).GetState() != sandboxv1.State_STATE_RUNNING })
	dies(ctx)
	wg.Wait()
	emptied(t, ctx, "host-a")
	for _, l := range loads {
		sb := settled(t, ctx, l.id)
		if sb.GetState() != sandboxv1.State_STATE_RUNNING || sb.GetHostId() != "host-b" {
			t.Errorf("%s is %s on %s: %s", l.id, sb.GetState(), sb.GetHostId(), sb.GetReason())
			continue
		}
		l.check(t, ctx)
	}
	intact(t, ctx)
}

func TestADrainGoesOnAfterTheSandboxServiceDies(t *testing.T) {
	drainedDespite(t, func(ctx context.Context) { kill(t, ctx, "sandboxd"); back(t, ctx, "sandboxd") })
}

func TestADrainGoesOnAfterTheDatabaseDies(t *testing.T) {
	drainedDespite(t, func(ctx context.Context) { kill(t, ctx, "postgres"); back(t, ctx, "postgres") })
}

func TestADrainGoesOnAfterItsHostAgentDies(t *testing.T) {
	drainedDespite(t, func(ctx context.Context) {
		kill(t, ctx, "hostagentd-host-a")
		if err := s.m.Restart(ctx, "hostagentd-host-a"); err != nil {
			t.Fatal(err)
		}
	})
}

func TestADrainGoesOnAfterTheRegistryDies(t *testing.T) {
	drainedDespite(t, func(ctx context.Context) { kill(t, ctx, "snapshotd"); back(t, ctx, "snapshotd") })
}

func TestConsulDiesAndWhatRunsGoesOnAndWhatIsBegunEnds(t *testing.T) {
	ctx := start(t)
	l := burden(t, ctx, placed(t, ctx, "host-a").GetId(), 2)
	kill(t, ctx, "consul")
	l.check(t, ctx)
	made := make(chan error, 1)
	var id string
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		res, err := patiently(ctx, func(ctx context.Context) (*sandboxv1.CreateSandboxResponse, error) {
			q := small()
			q.RequestId = "made-without-consul"
			return s.sandboxes.CreateSandbox(ctx, q)
		})
		id = res.GetSandbox().GetId()
		made <- err
	})
	pause(t, ctx, l.id)
	durable(t, ctx, l.id)
	back(t, ctx, "consul")
	if err := <-made; err != nil {
		t.Fatalf("a sandbox that was asked for without Consul: %v", err)
	}
	remove(t, id)
	sh(t, ctx, id, "true")
	l.onTheOther(t, ctx)
	eventually(t, 30*time.Second, "all are registered again", func() bool {
		return healthyIn(t, "covey-host") == 2 && healthyIn(t, "covey-sandbox") == 1 && healthyIn(t, "covey-gateway") == 1
	})
}

func TestAHostThatIsLostTakesOnlyWhatRanThereAndThatIsSaidWithTheReason(t *testing.T) {
	ctx := start(t)
	impatient(t, ctx)
	paused, runs := placed(t, ctx, "host-b"), placed(t, ctx, "host-b")
	l := burden(t, ctx, paused.GetId(), 4)
	pause(t, ctx, paused.GetId())
	durable(t, ctx, paused.GetId())
	pid := int(onHost(t, ctx, "host-b", runs.GetId()).GetPid())

	kill(t, ctx, "hostagentd-host-b") // And with it what runs there, as when a machine dies.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 40*time.Second, "host-b counts as lost", func() bool {
		res, err := s.hosts.ListHosts(ctx, &schedulerv1.ListHostsRequest{})
		if err != nil {
			return false
		}
		for _, h := range res.GetHosts() {
			if h.GetId() == "host-b" {
				return h.GetState() == schedulerv1.HostState_HOST_STATE_LOST
			}
		}
		return true
	})
	l.onTheOther(t, ctx)
	lost := becomes(t, ctx, runs.GetId(), sandboxv1.State_STATE_FAILED, time.Minute)
	if !strings.Contains(lost.GetReason(), "host-b") || !strings.Contains(lost.GetReason(), "not heard of") {
		t.Errorf("the reason is %q", lost.GetReason())
	}
	_, err := s.sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: runs.GetId()})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("resuming what is lost: %v", err)
	}
	back(t, ctx, "hostagentd-host-b")
	eventually(t, 30*time.Second, "host-b has nothing of it any more", func() bool { return len(holdingsOf(runs.GetId())) == 0 })
	if sb := get(t, ctx, runs.GetId()); sb.GetState() != sandboxv1.State_STATE_FAILED {
		t.Errorf("after its host came back it is %s", sb.GetState())
	}
	intact(t, ctx)
}

// impatient makes the sandbox service give hosts up after seconds, until the test's end.
func impatient(t *testing.T, ctx context.Context) {
	t.Helper()
	path := filepath.Join(s.m.Dir, "config", "sandboxd.yaml")
	usual, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	again := func(ctx context.Context, conf []byte) {
		if err := os.WriteFile(path, conf, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.m.Kill(ctx, "sandboxd"); err != nil {
			t.Fatal(err)
		}
		back(t, ctx, "sandboxd")
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(as(context.Background(), s.key), time.Minute)
		defer cancel()
		again(ctx, usual)
	})
	again(ctx, append([]byte("timing:\n  host_lost: 2s\n"), usual...))
}
