package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"net"
	"os"
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

// intact reads all that durable snapshots name, and fails the test if a byte of it is missing or wrong.
func intact(t *testing.T, ctx context.Context) {
	t.Helper()
	c, err := pgx.Connect(ctx, s.m.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	named := func() map[string]object {
		rows, err := c.Query(ctx, `SELECT s.id, o.key, o.path, o.size_bytes, o.sha256, o.stored FROM snapshot.snapshot s
			JOIN snapshot.reference r ON r.snapshot_id = s.id JOIN snapshot.object o ON o.key = r.key WHERE s.state = 'DURABLE'`)
		if err != nil {
			t.Fatal(err)
		}
		list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[object])
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]object{}
		for _, o := range list {
			all[o.Path] = o
		}
		return all
	}
	var wrong []object
	all := named()
	for _, o := range all {
		if !o.whole() {
			wrong = append(wrong, o)
		}
	}
	if len(wrong) > 0 {
		all = named() // What nothing names any more was collected meanwhile.
	}
	for _, o := range wrong {
		if _, still := all[o.Path]; still {
			t.Errorf("durable snapshot %s: object %s (%d bytes, stored %v) is missing or damaged", o.Snapshot, o.Key, o.Size, o.Stored)
		}
	}
	t.Logf("%d objects of durable snapshots are whole", len(all))
}

// object is an object as the registry's database has it.
type object struct {
	Snapshot, Key, Path string
	Size                int64
	SHA256              []byte
	Stored              bool
}

func (o object) whole() bool {
	f, err := os.Open(filepath.Join(s.m.Dir, "objects", o.Path))
	if err != nil {
		return false
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	return err == nil && o.Stored && n == o.Size && bytes.Equal(sum.Sum(nil), o.SHA256)
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

func TestAHostAgentDiesDuringAnUploadAndFinishesItAfterwards(t *testing.T) {
	ctx := start(t)
	sb := placed(t, ctx, "host-a")
	l := burden(t, ctx, sb.GetId(), 24)
	pause(t, ctx, sb.GetId())
	kill(t, ctx, "hostagentd-host-a")
	if get(t, ctx, sb.GetId()).GetDurable() {
		t.Log("the upload was faster than the death")
	}
	back(t, ctx, "hostagentd-host-a")
	l.onTheOther(t, ctx)
	intact(t, ctx)
}

func TestTheDatabaseDiesDuringASpawnWhichIsDoneOnceAndOnlyOnce(t *testing.T) {
	ctx := start(t)
	src := create(t, ctx, on("host-a"))
	l := burden(t, ctx, src.GetId(), 2)
	template(t, ctx, src.GetId(), "chaos-template")
	made := make(chan *sandboxv1.Sandbox, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		q := on("host-b")
		q.Template, q.MemoryMb, q.RequestId = "chaos-template", 0, "spawned-without-database"
		res, err := patiently(ctx, func(ctx context.Context) (*sandboxv1.CreateSandboxResponse, error) {
			return s.sandboxes.CreateSandbox(ctx, q)
		})
		if err != nil {
			t.Errorf("spawn: %v", err)
		}
		made <- res.GetSandbox()
	})
	eventually(t, 20*time.Second, "it is being spawned", func() bool {
		res, err := s.sandboxes.ListSandboxes(ctx, &sandboxv1.ListSandboxesRequest{PageSize: 1})
		return err == nil && len(res.GetSandboxes()) == 1 && res.GetSandboxes()[0].GetTemplate() == "chaos-template"
	})
	kill(t, ctx, "postgres")
	back(t, ctx, "postgres")
	wg.Wait()
	sb := <-made
	remove(t, sb.GetId())
	if now := settled(t, ctx, sb.GetId()); now.GetState() != sandboxv1.State_STATE_RUNNING {
		t.Fatalf("it is %s: %s", now.GetState(), now.GetReason())
	}
	load{sb.GetId(), l.memory, l.disk}.check(t, ctx)
	l.check(t, ctx)
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

// drainedDespite drains a host while something dies, and drains again until it is empty; all loads must be well elsewhere.
func drainedDespite(t *testing.T, dies func(context.Context)) {
	ctx := start(t)
	var loads []load
	for range 2 {
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
	impatient(t, start(t), "lease: 3s")
	drainedDespite(t, func(ctx context.Context) { kill(t, ctx, "sandboxd"); back(t, ctx, "sandboxd") })
}

func TestADrainGoesOnAfterTheDatabaseDies(t *testing.T) {
	impatient(t, start(t), "lease: 3s")
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
	impatient(t, ctx, "host_lost: 2s")
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

// impatient gives the sandbox service another timing, until the test's end.
func impatient(t *testing.T, ctx context.Context, timing string) {
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
	again(ctx, append([]byte("timing: {"+timing+"}\n"), usual...))
}
