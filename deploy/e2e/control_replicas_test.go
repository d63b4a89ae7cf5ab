package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// replicas starts n more sandboxd on the mesh's database and Consul; they end with the test.
func replicas(t *testing.T, n int) []*exec.Cmd {
	t.Helper()
	main := s.m.Process("sandboxd")
	conf, err := os.ReadFile(filepath.Join(s.m.Dir, "config", "sandboxd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var all []*exec.Cmd
	for i := range n {
		path := filepath.Join(t.TempDir(), "sandboxd.yaml")
		own := strings.ReplaceAll(string(conf), "sandboxd.jsonl", fmt.Sprintf("sandboxd-%d.jsonl", i+2))
		if err := os.WriteFile(path, []byte(own), 0o600); err != nil {
			t.Fatal(err)
		}
		log, err := os.Create(filepath.Join(s.m.Dir, "logs", fmt.Sprintf("sandboxd-%d.log", i+2)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { log.Close() })
		cmd := exec.Command(main.Path, "--config", path)
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(os.Interrupt) // It may have ended.
			_ = cmd.Wait()
		})
		all = append(all, cmd)
	}
	eventually(t, 30*time.Second, fmt.Sprintf("%d replicas of sandboxd are healthy", n+1), func() bool { return healthyIn(t, "covey-sandbox") == n+1 })
	return all
}

func healthyIn(t *testing.T, service string) int {
	t.Helper()
	c := consul.DefaultNonPooledConfig()
	c.Address = s.m.ConsulAddr
	client, err := consul.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := client.Health().Service(service, "", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestThreeReplicasShareTheWorkAndTheDeathOfOneLosesNothing(t *testing.T) {
	ctx := start(t)
	replicas(t, 2)
	const n = 6
	ids := make([]string, n)
	var wg sync.WaitGroup
	begun := make(chan struct{}, n)
	for i := range n {
		wg.Go(func() {
			q := &sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 256, TimeoutSec: 600, RequestId: fmt.Sprintf("replicas-%d", i)}
			begun <- struct{}{}
			r, err := patiently(ctx, func(ctx context.Context) (*sandboxv1.CreateSandboxResponse, error) {
				return s.sandboxes.CreateSandbox(ctx, q)
			})
			if err != nil {
				t.Errorf("create %d: %v", i, err)
				return
			}
			ids[i] = r.GetSandbox().GetId()
		})
	}
	for range n {
		<-begun
	}
	// Some are being started now; a third of them by the one that dies.
	eventually(t, 20*time.Second, "work under way", func() bool {
		r, err := s.sandboxes.ListSandboxes(ctx, &sandboxv1.ListSandboxesRequest{States: []sandboxv1.State{sandboxv1.State_STATE_STARTING, sandboxv1.State_STATE_PENDING, sandboxv1.State_STATE_RUNNING}})
		return err == nil && len(r.GetSandboxes()) >= n/2
	})
	if err := s.m.Kill(ctx, "sandboxd"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.m.Restart(context.Background(), "sandboxd"); err != nil {
			t.Errorf("sandboxd does not come back: %v", err)
		}
		eventually(t, 30*time.Second, "sandboxd is back", func() bool { return healthyIn(t, "covey-sandbox") == 3 && s.m.Ready(context.Background()) == nil })
	})
	wg.Wait()
	seen := map[string]bool{}
	for i, id := range ids {
		if id == "" {
			continue
		}
		remove(t, id)
		if seen[id] {
			t.Errorf("request %d answers another's sandbox", i)
		}
		seen[id] = true
		again, err := patiently(ctx, func(ctx context.Context) (*sandboxv1.CreateSandboxResponse, error) {
			return s.sandboxes.CreateSandbox(ctx, &sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 256, TimeoutSec: 600, RequestId: fmt.Sprintf("replicas-%d", i)})
		})
		if err != nil || again.GetSandbox().GetId() != id {
			t.Errorf("request %d again: %v, %v", i, again.GetSandbox().GetId(), err)
		}
		if got := sh(t, ctx, id, "echo alive"); got != "alive" {
			t.Errorf("%s answers %q", id, got)
		}
	}
	// What is in the database runs, and nothing else does.
	for _, h := range s.m.Hosts {
		r, err := agent(t, h).ListSandboxes(ctx, &hostv1.ListSandboxesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, sb := range r.GetSandboxes() {
			if sb.GetState() == sandboxv1.State_STATE_RUNNING && get(t, ctx, sb.GetSandboxId()).GetHostId() != h {
				t.Errorf("%s runs on %s, and the database does not know", sb.GetSandboxId(), h)
			}
		}
	}

	// Three reconcilers see the same pause by the host; it is one change.
	idle := create(t, ctx, &sandboxv1.CreateSandboxRequest{TimeoutSec: 2})
	events := watching(t, ctx, idle.GetId())
	paused := becomes(t, ctx, idle.GetId(), sandboxv1.State_STATE_PAUSED, 40*time.Second)
	events.paused(t, 1)
	if paused.GetVersion() > idle.GetVersion()+2 {
		t.Errorf("version %d after %d", paused.GetVersion(), idle.GetVersion())
	}
}
