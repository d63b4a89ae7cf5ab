package meshtest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
)

// Kill ends a process of the mesh as a crash would, and starts it again at the test's end if the test has not.
func (s *Suite) Kill(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	if err := s.Mesh.Kill(ctx, name); err != nil {
		t.Fatal(err)
	}
	s.Cleanup(t, func(ctx context.Context) { s.Back(t, ctx, name) })
}

// Back starts a process of the mesh again and waits until the mesh serves as before.
func (s *Suite) Back(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	if s.Mesh.Process(name).Alive() {
		return
	}
	if host, is := strings.CutPrefix(name, "hostagentd-"); is {
		s.Revive(t, ctx, host)
		return
	}
	Eventually(t, 45*time.Second, name+" is back", func() bool {
		if err := s.Mesh.Restart(ctx, name); err != nil {
			return false // PostgreSQL, while what its death has left still ends.
		}
		if name == "postgres" && !s.databaseAnswers(ctx) || name == "consul" && !s.accepts(s.Mesh.ConsulAddr) ||
			name == "objects" && !s.accepts(s.Mesh.Objects.Addr) {
			return false
		}
		return s.Mesh.Ready(ctx) == nil
	})
}

// Revive starts a host agent that was killed and waits until the scheduler knows where it is now.
func (s *Suite) Revive(t *testing.T, ctx context.Context, host string) {
	t.Helper()
	killed := time.Now()
	if err := s.Mesh.Restart(ctx, "hostagentd-"+host); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 30*time.Second, host+" is back", func() bool {
		res, err := s.Hosts.ListHosts(ctx, &schedulerv1.ListHostsRequest{})
		return err == nil && slices.ContainsFunc(res.GetHosts(), func(h *schedulerv1.Host) bool {
			return h.GetId() == host && h.GetState() != schedulerv1.HostState_HOST_STATE_LOST && h.GetHeartbeatTime().AsTime().After(killed)
		})
	})
}

func (s *Suite) databaseAnswers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := s.Mesh.Connect(ctx)
	if err != nil {
		return false
	}
	defer c.Close(ctx)
	return c.Ping(ctx) == nil
}

func (s *Suite) accepts(addr string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := s.Mesh.Dial(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// Cordon keeps new sandboxes off a host, or no longer.
func (s *Suite) Cordon(t *testing.T, ctx context.Context, host string, is bool) {
	t.Helper()
	_, err := Patiently(ctx, func(ctx context.Context) (*schedulerv1.CordonHostResponse, error) {
		return s.Hosts.CordonHost(ctx, &schedulerv1.CordonHostRequest{HostId: host, Cordoned: new(is)})
	})
	if err != nil {
		t.Fatalf("cordon %s %v: %v", host, is, err)
	}
}

// DrainHost drains a host to the end of the stream.
func (s *Suite) DrainHost(ctx context.Context, host string) (all []*sandboxv1.DrainHostResponse, err error) {
	st, err := s.Operations.DrainHost(ctx, &sandboxv1.DrainHostRequest{HostId: host})
	for err == nil {
		var m *sandboxv1.DrainHostResponse
		if m, err = st.Recv(); err == nil {
			all = append(all, m)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return all, err
}

// Emptied drains until nothing needs the host, however often the drain is cut off.
func (s *Suite) Emptied(t *testing.T, ctx context.Context, host string) {
	t.Helper()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		all, err := s.DrainHost(ctx, host)
		if err == nil && all[len(all)-1].GetRemaining() == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s is not empty: %v, %v", host, all, err)
		}
	}
}

// Impatient gives the sandbox service another timing, until the test's end.
func (s *Suite) Impatient(t *testing.T, ctx context.Context, timing string) {
	t.Helper()
	path := filepath.Join(s.Mesh.Dir, "config", "sandboxd.yaml")
	usual, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	again := func(ctx context.Context, conf []byte) {
		if err := os.WriteFile(path, conf, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Mesh.Kill(ctx, "sandboxd"); err != nil {
			t.Fatal(err)
		}
		s.Back(t, ctx, "sandboxd")
	}
	s.Cleanup(t, func(ctx context.Context) { again(ctx, usual) })
	again(ctx, append([]byte("timing: {"+timing+"}\n"), usual...))
}

// HoldingsOf finds what the machine has of a sandbox: its run directory, overlay and cgroups.
func (s *Suite) HoldingsOf(id string) []string {
	var found []string
	for _, pattern := range []string{
		s.Mesh.Dir + "/host-*/run/" + id, s.Mesh.Dir + "/host-*/overlay/" + id + "*", "/sys/fs/cgroup/*/covey*/*" + id + "*", "/sys/fs/cgroup/covey*/*" + id + "*",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			panic(err) // The pattern is bad.
		}
		found = append(found, paths...)
	}
	return found
}
