package server

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/coveyhq/covey/guest/internal/process"
)

// clients knows whose connection and streams are open, and what becomes of processes whose client goes.
//
// A restored guest still believes in the connections that were open when its snapshot was taken. As soon as it sends on one,
// the answer is a reset, which looks like a client that leaves, perhaps before AfterRestore could say what happened. So
// for a while after a snapshot was announced (Quiesce) a process is not killed at once, and AfterRestore pardons it.
type clients struct {
	mu      sync.Mutex
	conns   []*net.TCPConn                   // guarded by mu
	streams map[*stream]bool                 // guarded by mu
	mercy   time.Time                        // no process is killed before; guarded by mu
	pending map[*process.Process]*time.Timer // processes to be killed then; guarded by mu
}

// afterSnapshot is how long a restored guest waits for AfterRestore before it takes a lost connection for a client's leaving. Guest time: what
// passes between snapshot and restore does not count.
const afterSnapshot = 5 * time.Second

func newClients() *clients {
	return &clients{streams: map[*stream]bool{}, pending: map[*process.Process]*time.Timer{}}
}

// stream is one open exec stream.
type stream struct {
	from string // the connection's peer
	end  context.CancelCauseFunc
	// pardoned tells that a restore has ended it: its process goes on, whatever was wrong with the stream before. Guarded by the clients' mu.
	pardoned bool
}

// open registers a stream; close it with the function returned. The context ends with the stream's own, or with the cause
// that ended it from here.
func (c *clients) open(ctx context.Context) (context.Context, *stream, func()) {
	ctx, end := context.WithCancelCause(ctx)
	s := &stream{from: peerOf(ctx), end: end}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams[s] = true
	return ctx, s, func() {
		end(context.Canceled)
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.streams, s)
	}
}

// left says that a process's client has gone, with its stream, nil if it had none: unless it is detached, the process ends.
func (c *clients) left(p *process.Process, s *stream) {
	if p.Detached() || !p.Running() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s != nil && s.pardoned {
		return
	}
	delete(c.streams, s) // Now its process counts.
	wait := time.Until(c.mercy)
	if wait <= 0 {
		p.Kill()
		return
	}
	c.pending[p] = time.AfterFunc(wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pending[p] != nil && !p.Attached() && !p.Detached() {
			p.Kill()
		}
		delete(c.pending, p)
	})
}

// snapshotAhead says that a snapshot may be taken from now on.
func (c *clients) snapshotAhead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mercy = time.Now().Add(afterSnapshot)
}

// restored ends what was open before the restore: every stream and connection but those of the caller. It returns how many
// exec streams that were.
func (c *clients) restored(caller string) (ended int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ended = len(c.pending)
	for p, t := range c.pending {
		t.Stop()
		delete(c.pending, p)
	}
	c.mercy = time.Time{}
	for s := range c.streams {
		if s.from != caller {
			s.end(errRestored)
			s.pardoned = true
			delete(c.streams, s)
			ended++
		}
	}
	for _, conn := range c.conns {
		if conn.RemoteAddr().String() != caller {
			_ = conn.SetLinger(0) // nobody is there to answer a FIN
			_ = conn.Close()
		}
	}
	return ended
}

// peerOf is the address of the connection that a call came on.
func peerOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return ""
}

// listener tells clients of every connection.
type listener struct {
	*net.TCPListener
	clients *clients
}

// Accept hands out the connection as it is, which the transport can read from without holding a buffer meanwhile; so that it
// was closed is found out when the next one comes.
func (l listener) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c := l.clients
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(slices.DeleteFunc(c.conns, closed), conn)
	return conn, nil
}

func closed(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}
