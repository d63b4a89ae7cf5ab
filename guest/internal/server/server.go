// Package server is guestd's gRPC server: it puts the guest's processes, files and identity behind covey.guest.v1.
//
// It is an adapter. What a command, a file or an identity is, and what can go wrong with it, its packages know; here their
// words become the contract's, and their errors statuses.
package server

import (
	"errors"
	"fmt"
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
	Guest    identity.Guest
	// Filesystem is a directory on the filesystem that Quiesce freezes.
	Filesystem string
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
	leases  *lease.Keeper
	root    *freeze.Filesystem
}

// New makes a server that does not serve yet.
func New(c Config) (*Server, error) {
	s := &Server{clients: newClients()}
	var err error
	if s.table, err = process.NewTable(c.Accounts); err != nil {
		return nil, err
	}
	if s.root, err = freeze.Open(c.Filesystem); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.leases, err = lease.Listen(c.LeaseSocket); err != nil {
		return nil, errors.Join(fmt.Errorf("leases: %w", err), s.Close())
	}
	g := &guestService{table: s.table, clients: s.clients, leases: s.leases, root: s.root, usage: c.Usage, guest: c.Guest, memory: c.Memory,
		shutdown: c.Shutdown, kernel: usage.KernelRelease(), bootID: usage.BootID()}
	if err := g.recall(); err != nil {
		return nil, errors.Join(fmt.Errorf("identity: %w", err), s.Close())
	}
	s.grpc = grpc.NewServer(options()...)
	guestv1.RegisterGuestServiceServer(s.grpc, g)
	guestv1.RegisterProcessServiceServer(s.grpc, &processService{table: s.table, clients: s.clients})
	guestv1.RegisterFileServiceServer(s.grpc, &fileService{accounts: c.Accounts})
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
	s.table.Close()
	var err error
	if s.leases != nil {
		err = s.leases.Close()
	}
	if s.root != nil {
		err = errors.Join(err, s.root.Close())
	}
	return err
}

// Paths of the guest.
const memory = "/run/covey/identity"

// Main serves the guest that it runs in until it is told to end.
func Main(addr string) error {
	// A guest without memory kills what uses it, not what the host speaks to; commands are exposed again.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		fmt.Fprintln(os.Stderr, "guestd: not protected from the lack of memory:", err)
	}
	s, err := New(Config{Filesystem: "/", LeaseSocket: lease.Socket, Memory: memory, Shutdown: tellInit})
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := net.Listen("tcp4", addr)
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
