package meshtest

import (
	"errors"
	"io"
	"net"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// Connect implements PortService. Ports of a sandbox are ports of this machine.
func (h *host) Connect(s grpc.BidiStreamingServer[guestv1.ConnectRequest, guestv1.ConnectResponse]) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	if _, err := h.home(first.GetSandboxId()); err != nil {
		return err
	}
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(first.GetPort()))))
	if err != nil {
		return apierr.E(codes.FailedPrecondition, "PORT_CLOSED", "nothing listens on port "+strconv.Itoa(int(first.GetPort())))
	}
	conn := c.(*net.TCPConn)
	defer conn.Close()
	if err := s.Send(&guestv1.ConnectResponse{}); err != nil {
		return err
	}
	up := make(chan struct{})
	h.running.Go(func() {
		defer close(up)
		for data := first.GetData(); ; {
			conn.Write(data)
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				conn.CloseWrite()
				return
			}
			if err != nil {
				conn.Close()
				return
			}
			data = m.GetData()
		}
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if err := s.Send(&guestv1.ConnectResponse{Data: buf[:n], End: errors.Is(err, io.EOF)}); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			<-up
			return nil
		}
		if err != nil {
			return err
		}
	}
}
