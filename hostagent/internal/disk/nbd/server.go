package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// Export is what is served. Its methods are called concurrently, with ranges that lie within Size. What WriteAt, Zero or Trim have
// done must be as safe when they return as the export's owner promises: flush and FUA add nothing to it.
type Export interface {
	// Size in bytes; it never changes.
	Size() int64
	// ReadAt fills p.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes p, and must not keep it. An error that is ENOSPC is told to the client as such.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Zero makes n bytes read as zeros.
	Zero(ctx context.Context, off, n int64) error
	// Trim tells that n bytes are of no use any more; they may then read as zeros.
	Trim(ctx context.Context, off, n int64) error
}

// maxConns bounds the connections to one export. A VMM has one; a moment after it reconnected, two.
const maxConns = 4

// Server serves one export on one socket.
type Server struct {
	export Export
	log    *slog.Logger
	listen *net.UnixListener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu         sync.Mutex // guards the fields below
	conns      map[*conn]struct{}
	lastLogged time.Time
	unlogged   int
}

// Listen serves an export on a Unix socket, which it makes anew and gives to the user uid alone, until Close.
func Listen(socket string, uid int, export Export, log *slog.Logger) (*Server, error) {
	l, err := listen(socket, uid)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{export: export, log: log, listen: l, ctx: ctx, cancel: cancel, conns: map[*conn]struct{}{}}
	s.wg.Go(s.accept)
	return s, nil
}

// listen makes the socket. The directory may be the client's own, who may put something else in the socket's place at any time: so
// nothing here follows a link. A socket file gets the mode that the socket has when it is bound.
func listen(socket string, uid int) (*net.UnixListener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	conf := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	l, err := conf.Listen(context.Background(), "unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Lchown(socket, uid, -1); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l.(*net.UnixListener), nil
}

// Close ends serving and returns when no request is under way any more. Clients see their connections end.
func (s *Server) Close() error {
	s.mu.Lock()
	s.cancel()
	err := s.listen.Close()
	for c := range s.conns {
		c.net.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Server) accept() {
	for {
		nc, err := s.listen.Accept()
		if err != nil {
			if s.ctx.Err() == nil {
				s.log.Error("the disk is not served to new connections any more", "error", err)
			}
			return
		}
		s.take(nc)
	}
}

// take begins to serve a connection.
func (s *Server) take(nc net.Conn) {
	c := &conn{server: s, net: nc, r: bufio.NewReaderSize(nc, 64<<10), budget: semaphore.NewWeighted(budget)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil || len(s.conns) >= maxConns {
		nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.wg.Go(func() {
		err := c.serve(s.ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("connection to the disk ended", "error", err)
		}
	})
}

// failed logs a request that the export could not fulfil. A guest can have as many of these as it likes, so one in a second is
// written.
func (s *Server) failed(r request, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.lastLogged) < time.Second {
		s.unlogged++
		return
	}
	s.log.Error("the disk has failed", "command", r.kind, "offset", r.off, "length", r.length, "error", err, "not_logged", s.unlogged)
	s.lastLogged, s.unlogged = now, 0
}
