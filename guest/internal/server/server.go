// Package server is guestd's gRPC server: it puts the guest's processes, files and identity behind covey.guest.v1.
//
// It is an adapter. What a command, a file or an identity is, and what can go wrong with it, its packages know; here their
// words become the contract's, and their errors statuses.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/coveyhq/covey/guest/internal/account"
	"github.com/coveyhq/covey/guest/internal/freeze"
	"github.com/coveyhq/covey/guest/internal/identity"
	"github.com/coveyhq/covey/guest/internal/lease"
	"github.com/coveyhq/covey/guest/internal/process"
	"github.com/coveyhq/covey/guest/internal/usage"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// Config is where a server finds its guest; the zero value of a field is the guest's own. Tests have others.
type Config struct {
	Accounts account.Database
	Usage    usage.Reader
	// Filesystem is a directory on the filesystem that Quiesce freezes.
	Filesystem string
	// Identity is the directory of the identity's files, see identity.Dir; Kernel what it sets, nil for the one that we run on.
	Identity string
	Kernel   identity.Kernel
	// LeaseSocket and Memory are paths, see lease.Socket and guestService.memory.
	LeaseSocket, Memory string
	// Shutdown ends the VM.
	Shutdown func() error
}

// Server serves one guest.
type Server struct {
	grpc    *grpc.Server
	clients *clients
	table   *process.Table
	closers []io.Closer // in the order that they were opened
}

// New makes a server that does not serve yet.
func New(c Config) (s *Server, err error) {
	s = &Server{clients: newClients()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.table, err = process.NewTable(c.Accounts); err != nil {
		return nil, err
	}
	g := &guestService{table: s.table, clients: s.clients, usage: c.Usage, shutdown: c.Shutdown, kernel: usage.KernelRelease(), bootID: usage.BootID()}
	if g.root, err = freeze.Open(c.Filesystem); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, g.root)
	if g.leases, err = lease.Listen(c.LeaseSocket); err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	s.closers = append(s.closers, g.leases)
	if g.guest, err = identity.Open(c.Identity, c.Kernel); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	s.closers = append(s.closers, g.guest)
	if g.memory, err = os.OpenFile(c.Memory, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, g.memory)
	if err := g.recall(); err != nil {
		fmt.Fprintln(os.Stderr, "guestd: the identity is lost:", err)
	}
	s.grpc = grpc.NewServer(options()...)
	guestv1.RegisterGuestServiceServer(s.grpc, g)
	guestv1.RegisterProcessServiceServer(s.grpc, &processService{table: s.table, clients: s.clients})
	guestv1.RegisterFileServiceServer(s.grpc, &fileService{accounts: c.Accounts})
	guestv1.RegisterPortServiceServer(s.grpc, portService{})
	return s, nil
}

// Sizes of gRPC's buffers. Static windows switch its bandwidth estimation off, which costs a ping and a timer for each
// burst; small buffers are fewer pages for the first call after a restore to bring in.
const (
	maxMessage       = 16 << 20
	streamWindow     = 1 << 20
	connectionWindow = 4 << 20
	readBuffer       = 16 << 10
	writeBuffer      = 32 << 10
)

func options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connectionWindow),
		grpc.ReadBufferSize(readBuffer), grpc.WriteBufferSize(writeBuffer),
		// A worker's stack has grown already; a goroutine for each call would have to grow its own.
		grpc.NumStreamWorkers(1),
		// Guest and host live and die together: neither looks whether the other is there.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: math.MaxInt64}),
		// The host may ask whether the guest lives as often as it likes.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 1, PermitWithoutStream: true}),
	}
}

// Serve serves until Close.
func (s *Server) Serve(l *net.TCPListener) error {
	return s.grpc.Serve(listener{TCPListener: l, clients: s.clients})
}

// Close ends everything that the server carries: calls, processes, leases.
func (s *Server) Close() error {
	if s.grpc != nil {
		s.grpc.Stop()
	}
	if s.table != nil {
		s.table.Close()
	}
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// memory is where the guest's memory of its identity is, see guestService.memory.
const memory = "/run/covey/identity"

// Main serves the guest that it runs in until it is told to end.
func Main(addr string) error {
	// A guest without memory kills what uses it, not what the host speaks to; commands are exposed again.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		fmt.Fprintln(os.Stderr, "guestd: not protected from the lack of memory:", err)
	}
	s, err := New(Config{Filesystem: "/", Identity: identity.Dir, LeaseSocket: lease.Socket, Memory: memory, Shutdown: tellInit})
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp4", addr)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l.(*net.TCPListener)) }()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	select {
	case <-stop:
		return nil
	case err := <-ended:
		return err
	}
}

// tellInit makes init end the VM.
func tellInit() error { return unix.Kill(1, unix.SIGTERM) }
