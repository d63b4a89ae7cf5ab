package chassis

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// preface is what every HTTP/2 connection opens with.
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	// prefaceTime is how long a connection may take to show what it is.
	prefaceTime = 10 * time.Second
	// acceptAgain is how long after an error of Accept it is tried again: files that are open do not become fewer by asking.
	acceptAgain = 20 * time.Millisecond
)

// splitter gives the connections of one listener to two: those whose first request is gRPC's, and others. Under TLS that is told inside it.
//
// Chosen: a connection belongs to the server that its first request is for. gRPC's clients make no others, so their connections stay with grpc.Server's own
// transport; where a proxy mixes both on one connection that HTTP came first on, gRPC's are passed on in the process (mixed.go). Rejected:
// grpc.Server as an http.Handler for all, which is slower, lacks half of its options and cannot drain.
type splitter struct {
	net.Listener
	tls       *tls.Config // nil without TLS
	web, grpc *branch
	deciding  sync.WaitGroup

	mu      sync.Mutex // guards pending
	pending map[net.Conn]struct{}
}

func split(l net.Listener, conf *tls.Config) *splitter {
	s := &splitter{Listener: l, tls: conf, pending: map[net.Conn]struct{}{}}
	s.web, s.grpc = newBranch(l), newBranch(l)
	return s
}

// run accepts until the listener is closed, and waits for what it started.
func (s *splitter) run() {
	for {
		c, err := s.Accept()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			<-time.After(acceptAgain) // Of one connection, or too many open files: what accepts must go on.
			continue
		}
		s.mu.Lock()
		s.pending[c] = struct{}{}
		s.mu.Unlock()
		s.deciding.Go(func() { s.decide(c) })
	}
	s.mu.Lock()
	for c := range s.pending {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.web.end()
	s.grpc.end()
	s.deciding.Wait()
}

// decide reads as much of a connection as it takes to tell what it is.
func (s *splitter) decide(c net.Conn) {
	defer func() {
		s.mu.Lock()
		delete(s.pending, c)
		s.mu.Unlock()
	}()
	if c.SetDeadline(time.Now().Add(prefaceTime)) != nil {
		_ = c.Close()
		return
	}
	own, to, err := s.tell(c)
	if err != nil || c.SetDeadline(time.Time{}) != nil {
		_ = c.Close()
		return
	}
	to.give(own)
}

// tell finds out whose a connection is and returns it with all of it still to be read.
func (s *splitter) tell(c net.Conn) (net.Conn, *branch, error) {
	if s.tls != nil {
		under := tls.Server(c, s.tls)
		if err := under.Handshake(); err != nil { // The deadline bounds it.
			return nil, nil, err
		}
		c = under
	}
	var head []byte
	for len(head) < len(preface) {
		buf := make([]byte, len(preface)-len(head))
		n, err := c.Read(buf)
		head = append(head, buf[:n]...)
		if !bytes.HasPrefix([]byte(preface), head) {
			return secure(c, &headedConn{Conn: c, head: bytes.NewReader(head)}), s.web, nil
		}
		if err != nil {
			return nil, nil, err
		}
	}
	own, isGRPC, err := sniff(c)
	if err != nil {
		return nil, nil, err
	}
	if isGRPC {
		return own, s.grpc, nil
	}
	return secure(c, own), s.web, nil
}

// securedConn is a connection under TLS, of which HTTP's server would not know.
type securedConn struct {
	net.Conn
	state tls.ConnectionState
}

func secure(under, c net.Conn) net.Conn {
	if t, ok := under.(*tls.Conn); ok {
		return &securedConn{c, t.ConnectionState()}
	}
	return c
}

// headedConn is a connection some of which has been read already.
type headedConn struct {
	net.Conn
	head *bytes.Reader
}

// Read implements net.Conn.
func (c *headedConn) Read(p []byte) (int, error) {
	if c.head.Len() > 0 {
		return c.head.Read(p)
	}
	return c.Conn.Read(p)
}

// ReadFrom keeps the kernel's copying for what is written.
func (c *headedConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// branch is the listener that one kind of connection comes from.
type branch struct {
	parent net.Listener
	conns  chan net.Conn
	done   chan struct{} // closed by end
	end    func()
}

func newBranch(parent net.Listener) *branch {
	b := &branch{parent: parent, conns: make(chan net.Conn), done: make(chan struct{})}
	b.end = sync.OnceFunc(func() { close(b.done) })
	return b
}

func (b *branch) give(c net.Conn) {
	select {
	case b.conns <- c:
	case <-b.done:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (b *branch) Accept() (net.Conn, error) {
	select {
	case c := <-b.conns:
		return c, nil
	case <-b.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The other branch goes on.
func (b *branch) Close() error {
	b.end()
	return nil
}

// Addr implements net.Listener.
func (b *branch) Addr() net.Addr { return b.parent.Addr() }
