package meshtest

import (
	"net"
	"testing"
)

// CutOff has a host take in and send nothing any more, without a word to who calls it, until the test ends.
func (m *Mesh) CutOff(t testing.TB, host int) {
	back := make(chan struct{})
	m.mu.Lock()
	m.cut[host] = back
	m.mu.Unlock()
	t.Cleanup(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.cut[host] = nil
		close(back)
	})
}

// reached waits while a host is cut off.
func (m *Mesh) reached(host int) {
	m.mu.Lock()
	back := m.cut[host]
	m.mu.Unlock()
	if back != nil {
		<-back
	}
}

// cuttable are connections to a host that can be cut off.
type cuttable struct {
	net.Listener
	m    *Mesh
	host int
}

func (l *cuttable) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &cuttableConn{c, l}, nil
}

type cuttableConn struct {
	net.Conn
	l *cuttable
}

func (c *cuttableConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.l.m.reached(c.l.host)
	return n, err
}

func (c *cuttableConn) Write(p []byte) (int, error) {
	c.l.m.reached(c.l.host)
	return c.Conn.Write(p)
}
