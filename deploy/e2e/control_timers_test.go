package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// becomes waits until a sandbox is in a state.
func becomes(t *testing.T, ctx context.Context, id string, want sandboxv1.State, within time.Duration) *sandboxv1.Sandbox {
	t.Helper()
	var sb *sandboxv1.Sandbox
	eventually(t, within, id+" is "+want.String(), func() bool {
		sb = get(t, ctx, id)
		return sb.GetState() == want
	})
	return sb
}

// history is the states that a watch of one sandbox has shown so far. A watch may be behind what others read.
type history struct {
	mu   sync.Mutex // guards seen
	seen []*sandboxv1.Sandbox
}

func watching(t *testing.T, ctx context.Context, id string) *history {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	w, err := s.sandboxes.WatchSandboxes(ctx, &sandboxv1.WatchSandboxesRequest{SandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	h := &history{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			r, err := w.Recv()
			if err != nil {
				return
			}
			h.mu.Lock()
			h.seen = append(h.seen, r.GetSandbox())
			h.mu.Unlock()
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return h
}

// count is how often the sandbox came into a state.
func (h *history) count(st sandboxv1.State) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, sb := range h.seen {
		if sb.GetState() == st && (i == 0 || h.seen[i-1].GetState() != st) {
			n++
		}
	}
	return n
}

// paused waits until so many pauses have been seen; more are an error.
func (h *history) paused(t *testing.T, n int) {
	t.Helper()
	eventually(t, 10*time.Second, fmt.Sprintf("a watcher has seen %d pauses", n), func() bool { return h.count(sandboxv1.State_STATE_PAUSED) >= n })
	if got := h.count(sandboxv1.State_STATE_PAUSED); got > n {
		t.Errorf("a watcher saw %d pauses, want %d", got, n)
	}
}

func TestAnIdleSandboxIsPausedWithTheReasonAndWakesWithinItsFirstRequest(t *testing.T) {
	t.Parallel() // It waits for timers most of the time.
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{TimeoutSec: 2, AutoResume: true})
	id := sb.GetId()
	sh(t, ctx, id, "echo kept > /run/note; cat /proc/sys/kernel/random/boot_id > /run/boot")
	seen := watching(t, ctx, id)
	paused := becomes(t, ctx, id, sandboxv1.State_STATE_PAUSED, 40*time.Second)
	for _, part := range []string{"inactive for 2s", "no open stream", "of a CPU in use"} {
		if !strings.Contains(paused.GetReason(), part) {
			t.Errorf("the reason %q lacks %q", paused.GetReason(), part)
		}
	}
	if paused.GetSnapshotId() == "" || paused.GetTimeoutSec() != 2 {
		t.Errorf("paused as %v", paused)
	}
	onIt := onHost(t, ctx, sb.GetHostId(), id)
	if onIt == nil || !onIt.GetAutoPaused() || onIt.GetSnapshotId() != paused.GetSnapshotId() {
		t.Errorf("its host says %v", onIt)
	}
	if left := holdingsOf(id); len(left) > 0 {
		t.Errorf("a paused sandbox holds %v", left)
	}

	began := time.Now()
	if got := sh(t, ctx, id, "cat /run/note; cmp /run/boot /proc/sys/kernel/random/boot_id && echo same"); got != "kept\nsame" {
		t.Errorf("the first request after the pause answers %q", got)
	}
	t.Logf("exec in a paused sandbox took %s", time.Since(began))
	if r := get(t, ctx, id); r.GetTimeoutSec() != 2 || !r.GetAutoResume() {
		t.Errorf("after the resume it is %v", r)
	}
	becomes(t, ctx, id, sandboxv1.State_STATE_PAUSED, 40*time.Second)
	// A file call wakes it too.
	if _, err := s.files.StatFile(ctx, &guestv1.StatFileRequest{SandboxId: id, Path: "/run/note"}); err != nil {
		t.Errorf("stat in a paused sandbox: %v", err)
	}
	seen.paused(t, 2)
}

func TestWhatIsAtWorkHoldsTheTimerAndEndsWithIt(t *testing.T) {
	t.Parallel() // It waits for timers most of the time.
	ctx := start(t)
	const timeout = 5 // More than a busy machine takes from a sandbox's start to what holds its timer.
	holders := map[string]func(t *testing.T, id string) (end func()){
		"a client's stream": func(t *testing.T, id string) func() {
			st, _ := stream(t, ctx, id, &guestv1.ProcessStart{Cmd: "sleep", Args: []string{"1000"}})
			return func() {
				if err := st.Send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Signal{Signal: "SIGKILL"}}); err != nil {
					t.Error(err)
				}
				if _, err := drain(st, func(*guestv1.Output) {}); err != nil {
					t.Error(err)
				}
			}
		},
		"a keep-alive process": func(t *testing.T, id string) func() {
			return detached(t, ctx, id, &guestv1.ProcessStart{Cmd: "sleep", Args: []string{"1000"}, Detached: true, KeepAlive: true})
		},
		"a lease": func(t *testing.T, id string) func() {
			return detached(t, ctx, id, &guestv1.ProcessStart{Cmd: "covey-lease", Args: []string{"sleep", "1000"}, Detached: true})
		},
		"a computation": func(t *testing.T, id string) func() {
			return detached(t, ctx, id, &guestv1.ProcessStart{Cmd: "sh", Args: []string{"-c", "while :; do :; done"}, Detached: true})
		},
		"pings": func(t *testing.T, id string) func() {
			sh(t, ctx, id, "true") // It may have been paused already.
			pinging, cancel := context.WithCancel(ctx)
			var wg sync.WaitGroup
			wg.Go(func() {
				tick := time.NewTicker(500 * time.Millisecond)
				defer tick.Stop()
				for pinging.Err() == nil {
					if _, err := s.sandboxes.PingSandbox(pinging, &sandboxv1.PingSandboxRequest{SandboxId: id}); err != nil && pinging.Err() == nil {
						t.Errorf("ping: %v", err)
						return
					}
					select {
					case <-tick.C:
					case <-pinging.Done():
					}
				}
			})
			return func() { cancel(); wg.Wait() }
		},
	}
	// All at once: what takes time is the timers.
	type held struct {
		name, id string
		host     string
		end      func()
	}
	var list []held
	for name, hold := range holders {
		sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{TimeoutSec: timeout, MemoryMb: 256, AutoResume: true})
		list = append(list, held{name, sb.GetId(), sb.GetHostId(), hold(t, sb.GetId())})
	}
	over := time.After(2*timeout*time.Second + 2*time.Second)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for watched := false; !watched; {
		select {
		case <-tick.C:
		case <-over:
			watched = true
		}
		for _, h := range list {
			if sb := get(t, ctx, h.id); sb.GetState() != sandboxv1.State_STATE_RUNNING {
				t.Fatalf("%s does not hold the timer: %s, %s", h.name, sb.GetState(), sb.GetReason())
			}
		}
	}
	// Meanwhile their hosts have kept what they used.
	m, err := hostv1.NewHostServiceClient(s.conn).GetSandboxMetrics(ctx, &hostv1.GetSandboxMetricsRequest{SandboxId: list[0].id})
	if err != nil || len(m.GetHistory()) == 0 || m.GetHistory()[0].GetCpuUsec() == 0 {
		t.Errorf("metrics: %v, %v", m, err)
	}
	for _, h := range list {
		h.end()
	}
	for _, h := range list {
		sb := becomes(t, ctx, h.id, sandboxv1.State_STATE_PAUSED, 40*time.Second)
		if !strings.Contains(sb.GetReason(), fmt.Sprintf("inactive for %ds", timeout)) {
			t.Errorf("after %s ended it was paused: %s", h.name, sb.GetReason())
		}
	}
}

// detached starts a detached process and leaves its stream. The returned function ends it.
func detached(t *testing.T, ctx context.Context, id string, p *guestv1.ProcessStart) func() {
	t.Helper()
	st, process := stream(t, ctx, id, p)
	if err := st.Send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Detach{Detach: &guestv1.Detach{}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := drain(st, func(*guestv1.Output) {}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := s.processes.SignalProcess(ctx, &guestv1.SignalProcessRequest{SandboxId: id, ProcessId: process, Signal: "SIGKILL"}); err != nil {
			t.Errorf("%v: %v", p, err)
		}
	}
}

// mortal makes a sandbox whose lifetime is short, but longer than its start takes here: it begins with the request.
func mortal(t *testing.T, ctx context.Context) *sandboxv1.Sandbox {
	t.Helper()
	for life := uint32(12); ; life *= 2 {
		res, err := s.sandboxes.CreateSandbox(ctx, &sandboxv1.CreateSandboxRequest{Template: "tiny", MaxLifetimeSec: life})
		if err == nil {
			remove(t, res.GetSandbox().GetId())
			return res.GetSandbox()
		}
		if life > 60 {
			t.Fatalf("create with a lifetime of %d s: %v", life, err)
		}
		t.Logf("its start took more than %d s: %v", life, err)
	}
}

func TestASandboxWhoseLifetimeIsOverIsStoppedRunningOrPaused(t *testing.T) {
	t.Parallel() // It waits for timers most of the time.
	ctx := start(t)
	running, saved := mortal(t, ctx), mortal(t, ctx)
	if _, err := s.sandboxes.PauseSandbox(ctx, &sandboxv1.PauseSandboxRequest{SandboxId: saved.GetId()}); err != nil {
		t.Logf("the pause came too late: %v", err)
	}
	for _, sb := range []*sandboxv1.Sandbox{running, saved} {
		now := becomes(t, ctx, sb.GetId(), sandboxv1.State_STATE_STOPPED, time.Minute)
		if !strings.Contains(now.GetReason(), "lifetime") {
			t.Errorf("%s stopped: %q", sb.GetId(), now.GetReason())
		}
		eventually(t, 10*time.Second, "everything freed", func() bool { return len(holdingsOf(sb.GetId())) == 0 })
	}
}

func TestAVMThatNobodyKnowsIsReaped(t *testing.T) {
	t.Parallel() // It waits for timers most of the time.
	ctx := start(t)
	const id = "sb_01ARZ3NDEKTSV4RRFFQ69G5FAX"
	host := agent(t, "host-a")
	_, err := host.StartSandbox(ctx, &hostv1.StartSandboxRequest{
		Spec: &hostv1.SandboxSpec{
			SandboxId: id, TenantId: "default", Image: "tiny", Vcpus: 1, MemoryMb: 256, DiskMb: 512, Kind: sandboxv1.StartKind_START_KIND_SPAWN,
		}, RestoreId: "rst_01ARZ3NDEKTSV4RRFFQ69G5FAX",
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "the VM is gone", func() bool {
		sb := onHost(t, ctx, "host-a", id)
		return sb == nil || sb.GetState() == sandboxv1.State_STATE_STOPPED
	})
	eventually(t, 10*time.Second, "everything freed", func() bool { return len(holdingsOf(id)) == 0 })
}

func TestACallThatMeetsTheTimerIsServedAllTheSame(t *testing.T) {
	t.Parallel() // It waits for timers most of the time.
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{TimeoutSec: 1, AutoResume: true, MemoryMb: 256})
	id := sb.GetId()
	sh(t, ctx, id, "echo 0 > /run/n")
	met := map[sandboxv1.State]int{}
	for i := range 6 {
		// The call comes while its host saves it, or right after, before the database knows.
		wanted := []sandboxv1.State{sandboxv1.State_STATE_PAUSING, sandboxv1.State_STATE_PAUSED}[i%2]
		host := agent(t, get(t, ctx, id).GetHostId())
		tick := time.NewTicker(5 * time.Millisecond)
		for deadline := time.Now().Add(overrun * 30 * time.Second); ; <-tick.C {
			r, err := host.ListSandboxes(ctx, &hostv1.ListSandboxesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			j := slices.IndexFunc(r.GetSandboxes(), func(h *hostv1.HostSandbox) bool { return h.GetSandboxId() == id })
			if j >= 0 && (r.GetSandboxes()[j].GetState() == wanted || r.GetSandboxes()[j].GetState() == sandboxv1.State_STATE_PAUSED) {
				met[r.GetSandboxes()[j].GetState()]++
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("it is not paused")
			}
		}
		tick.Stop()
		if got := sh(t, ctx, id, "n=$(cat /run/n); echo $((n+1)) > /run/n; cat /run/n"); got != strconv.Itoa(i+1) {
			t.Fatalf("call %d answers %q", i+1, got)
		}
	}
	t.Logf("calls met it %v", met)
}
