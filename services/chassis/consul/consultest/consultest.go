// Package consultest runs a real Consul for tests: one server in memory, on a loopback address of its own. On an address that all share, a port that was
// chosen because it was free may be taken, by a connection that goes out from it, before Consul listens there, and again while a test has stopped it.
//
// The binary is COVEY_CONSUL_BIN (`make test` sets it). Where it is not set the test is skipped, unless COVEY_REQUIRE says that all must run.
package consultest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	startTime = 2 * time.Minute
	tries     = 3 // An address may be another's by chance.
)

// Server is a Consul server. It ends with the test.
type Server struct {
	// Addr is its HTTP address, host:port; the same after a restart.
	Addr string

	bin, conf string
	mu        sync.Mutex // guards cmd and exited
	cmd       *exec.Cmd
	log       *bytes.Buffer
	exited    chan struct{} // closed when cmd has ended
}

// Start starts a server and returns once it leads itself.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := os.Getenv("COVEY_CONSUL_BIN")
	if bin == "" {
		const why = "COVEY_CONSUL_BIN is not set: it names Consul's binary, which `go build -o consul .` in deploy/consul makes; `make test` does all that"
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	var err error
	for range tries {
		s := &Server{bin: bin, conf: filepath.Join(t.TempDir(), "consul.json")}
		if err = s.configure(); err != nil {
			t.Fatal(err)
		}
		if err = s.start(); err == nil {
			t.Cleanup(s.Stop)
			return s
		}
		s.Stop()
	}
	t.Fatal(err)
	return nil
}

// configure chooses an address, and ports there that nobody has who listens on all addresses.
func (s *Server) configure() error {
	ip := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	ports := map[string]int{"https": -1, "grpc": -1, "grpc_tls": -1, "serf_wan": -1}
	for _, name := range []string{"http", "server", "serf_lan", "dns"} {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			return err
		}
		// Held until all are chosen, so that they differ.
		defer l.Close()
		ports[name] = l.Addr().(*net.TCPAddr).Port
	}
	s.Addr = net.JoinHostPort(ip, strconv.Itoa(ports["http"]))
	b, err := json.Marshal(map[string]any{
		"ports": ports, "node_name": "test", "bind_addr": ip, "client_addr": ip, "disable_update_check": true, "log_level": "warn",
	})
	if err != nil {
		return err
	}
	return os.WriteFile(s.conf, b, 0o600)
}

func (s *Server) start() error {
	cmd := exec.Command(s.bin, "agent", "-dev", "-config-file", s.conf)
	log := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // Stop kills it; how it ended says nothing.
	}()
	s.mu.Lock()
	s.cmd, s.exited, s.log = cmd, exited, log
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	return s.wait(ctx)
}

// wait waits until the server has a leader and knows its node.
func (s *Server) wait(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := s.leads(ctx); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.exited:
			return fmt.Errorf("consul ended:\n%s", s.log)
		case <-ctx.Done():
			return errors.New("consul did not come up in " + startTime.String())
		}
	}
}

func (s *Server) leads(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addr+"/v1/catalog/nodes", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var nodes []any
	if err := json.NewDecoder(resp.Body).Decode(&nodes); err != nil || resp.StatusCode != http.StatusOK || len(nodes) == 0 {
		return fmt.Errorf("no leader yet: %s %w", resp.Status, err)
	}
	return nil
}

// Stop kills the server, which forgets everything.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // It may have ended.
	<-s.exited
	s.cmd = nil
}

// Restart starts the server that Stop has ended, at the same address, with an empty catalogue.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
}
