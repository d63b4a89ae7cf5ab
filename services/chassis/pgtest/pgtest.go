// Package pgtest runs a real PostgreSQL for tests: one server per test binary, one database per test.
//
// Use it so:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
//	func TestX(t *testing.T)    { dsn := pgtest.Database(t) }
//
// The server listens on a Unix socket alone, in a directory that only its user and root may enter. PostgreSQL refuses
// root, so for root it runs as the user "postgres" that the Debian package makes.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// startTime is how long initdb and the server's start may take, each.
const startTime = 60 * time.Second

// shared is the server of this test binary; started by the first Database.
var shared struct {
	once   sync.Once
	server *server
	err    error
	n      atomic.Int64
}

// Main runs the package's tests and stops the server after them.
func Main(m *testing.M) int {
	code := m.Run()
	if shared.server != nil {
		if err := shared.server.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
			return max(code, 1)
		}
	}
	return code
}

// Database makes an empty database, which goes with the server, and returns its connection string. Where this machine has no
// PostgreSQL the test is skipped.
func Database(t testing.TB) string {
	t.Helper()
	bin, err := binaries()
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	shared.once.Do(func() { shared.server, shared.err = start(bin) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	name := fmt.Sprintf("test%d", shared.n.Add(1))
	ctx, cancel := context.WithTimeout(t.Context(), startTime)
	defer cancel()
	c, err := pgx.Connect(ctx, shared.server.dsn("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	if _, err := c.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return shared.server.dsn(name)
}

// binaries finds the newest PostgreSQL that Debian's packages have installed.
func binaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", errors.New("no PostgreSQL in /usr/lib/postgresql: install the package postgresql-15")
	}
	slices.SortFunc(found, func(a, b string) int { return version(a) - version(b) })
	return filepath.Dir(found[len(found)-1]), nil
}

func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

type server struct {
	bin, dir string
	cred     *syscall.Credential
	cmd      *exec.Cmd
	log      bytes.Buffer
	exited   chan error // gets one value, from the goroutine that waits for the process
}

func start(bin string) (_ *server, err error) {
	s := &server{bin: bin, exited: make(chan error, 1)}
	if s.cred, err = unprivileged(); err != nil {
		return nil, err
	}
	// Not t.TempDir: its path can be too long for a Unix socket, and its parent cannot be entered by another user.
	if s.dir, err = os.MkdirTemp("", "covey-pg"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(s.dir))
		}
	}()
	if s.cred != nil {
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	out, err := s.command(ctx, "initdb", "-D", s.data(), "-U", "covey", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
		"--no-sync", "--no-instructions").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return s, s.run(ctx)
}

// unprivileged is who the server runs as; nil means as ourselves.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL refuses root and there is no user \"postgres\": %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }

func (s *server) dsn(db string) string {
	return fmt.Sprintf("host=%s user=covey dbname=%s sslmode=disable", s.dir, db)
}

func (s *server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	c.Dir = "/"
	// The server ends with the test binary, whatever ends that.
	c.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGQUIT}
	return c
}

// run starts the server and returns once it answers. Nothing of it needs to survive a crash of the machine.
func (s *server) run(ctx context.Context) error {
	s.cmd = s.command(context.Background(), "postgres", "-D", s.data(), "-k", s.dir, "-c", "listen_addresses=",
		"-c", "unix_socket_permissions=0700", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=100", "-c", "shared_buffers=16MB")
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() { s.exited <- s.cmd.Wait() }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := pgx.Connect(ctx, s.dsn("postgres"))
		if err == nil {
			return c.Close(ctx)
		}
		select {
		case <-tick.C:
		case werr := <-s.exited:
			return fmt.Errorf("PostgreSQL ended: %w\n%s", werr, s.log.String())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("PostgreSQL did not start: %w", err), s.stop())
		}
	}
}

// stop ends the server at once and removes its files.
func (s *server) stop() error {
	err := s.cmd.Process.Signal(syscall.SIGQUIT)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-s.exited
	return errors.Join(err, os.RemoveAll(s.dir))
}
