package ports

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// frame is how much is sent in one message, bytes.
const frame = 256 << 10

// Conn is a connection to a program in a sandbox. Read and Write may be called at once, each by one goroutine. It has no deadlines.
type Conn struct {
	call   guestv1.PortService_ConnectClient
	cancel context.CancelFunc
	port   Port
	rest   []byte // read by nobody yet
	end    error  // what Read gives when rest is used up
}

// Dial connects to a port. The context bounds the dialling, and its values are the connection's, which ends with Close.
func Dial(ctx context.Context, client guestv1.PortServiceClient, p Port) (_ *Conn, err error) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	c := &Conn{port: p, cancel: cancel}
	if c.call, err = client.Connect(own); err == nil {
		err = c.call.Send(&guestv1.ConnectRequest{SandboxId: p.Sandbox, Port: uint32(p.Number)})
	}
	if err == nil || errors.Is(err, io.EOF) { // After io.EOF the call's status is received.
		_, err = c.call.Recv()
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.cancel()
		return nil, err
	}
	return c, nil
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.end != nil {
			return 0, c.end
		}
		m, err := c.call.Recv()
		if err != nil {
			c.end = err
			continue
		}
		if c.rest = m.GetData(); m.GetEnd() {
			c.end = io.EOF
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		part := p[done:min(len(p), done+frame)]
		if err := c.call.Send(&guestv1.ConnectRequest{Data: part}); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

// CloseWrite says that nothing more will be written.
func (c *Conn) CloseWrite() error { return c.call.CloseSend() }

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.cancel()
	return nil
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return address("gateway") }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return address(c.port.Host("sandbox")) }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(time.Time) error { return errors.ErrUnsupported }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(time.Time) error { return errors.ErrUnsupported }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

type address string

func (address) Network() string  { return "covey" }
func (a address) String() string { return string(a) }
