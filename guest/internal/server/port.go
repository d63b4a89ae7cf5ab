package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// portService serves covey.guest.v1.PortService: it dials the loopback, where a program that listens on all addresses is found too.
type portService struct {
	guestv1.UnimplementedPortServiceServer
}

const (
	// portFrame is how much is read from a program at once, bytes.
	portFrame = 64 << 10
	// dialTime bounds the making of a connection: on the loopback only a full backlog delays it.
	dialTime = 5 * time.Second
)

// Connect implements PortService.
func (portService) Connect(st grpc.BidiStreamingServer[guestv1.ConnectRequest, guestv1.ConnectResponse]) error {
	first, err := st.Recv()
	if err != nil {
		return err
	}
	if first.GetPort() < 1 || first.GetPort() > 65535 {
		return field("port", fmt.Sprintf("must be 1 to 65535, got %d", first.GetPort()))
	}
	conn, err := dialPort(st, int(first.GetPort()))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := st.Send(&guestv1.ConnectResponse{}); err != nil {
		return err
	}
	// It blocks in Recv, which ends with the call at the latest; what it writes to then is closed.
	up := make(chan error, 1)
	go func() {
		err := toProgram(st, conn, first.GetData())
		up <- err
		if err != nil {
			conn.Close() // Ends what reads from it, below.
		}
	}()
	if err := fromProgram(st, conn); err != nil {
		select {
		case cause := <-up:
			if cause != nil {
				return mapped(cause)
			}
		default:
		}
		return mapped(err)
	}
	return mapped(<-up)
}

func dialPort(st grpc.ServerStream, port int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: dialTime}
	var err error
	for _, loopback := range []string{"127.0.0.1", "::1"} {
		var c net.Conn
		if c, err = d.DialContext(st.Context(), "tcp", net.JoinHostPort(loopback, strconv.Itoa(port))); err == nil {
			return c.(*net.TCPConn), nil
		}
	}
	if st.Context().Err() != nil {
		return nil, mapped(st.Context().Err())
	}
	return nil, answer(codes.FailedPrecondition, "PORT_CLOSED", fmt.Sprintf("nothing in the sandbox listens on port %d", port))
}

// toProgram passes the client's bytes on, and its half-close.
func toProgram(st grpc.BidiStreamingServer[guestv1.ConnectRequest, guestv1.ConnectResponse], conn *net.TCPConn, data []byte) error {
	for {
		if _, err := conn.Write(data); err != nil && !closedByProgram(err) {
			return err
		}
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			_ = conn.CloseWrite() // An error means that the program has gone, which reading finds out.
			return nil
		}
		if err != nil {
			return err
		}
		data = m.GetData()
	}
}

// closedByProgram tells that a program wants no more: what is sent to it is dropped, as it may still have something to say.
func closedByProgram(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// fromProgram passes the program's bytes on until it has sent all.
func fromProgram(st grpc.BidiStreamingServer[guestv1.ConnectRequest, guestv1.ConnectResponse], conn *net.TCPConn) error {
	buf := make([]byte, portFrame)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := st.Send(&guestv1.ConnectResponse{Data: buf[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return st.Send(&guestv1.ConnectResponse{End: true})
		case errors.Is(err, syscall.ECONNRESET):
			return answer(codes.Aborted, "CONNECTION_RESET", "the program reset the connection")
		case err != nil:
			return err
		}
	}
}
