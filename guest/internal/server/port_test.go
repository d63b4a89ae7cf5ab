package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// program listens on a port and has one connection served.
func program(t *testing.T, serve func(*net.TCPConn)) uint32 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			serve(c.(*net.TCPConn))
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

func TestAPortCarriesBytesAndHalfClosesBothWays(t *testing.T) {
	f := newFixture(t)
	got := make(chan []byte, 1)
	port := program(t, func(c *net.TCPConn) {
		io.WriteString(c, "welcome")
		c.CloseWrite() // And reads on.
		b, _ := io.ReadAll(c)
		got <- b
	})
	st, err := guestv1.NewPortServiceClient(f.dial().conn).Connect(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&guestv1.ConnectRequest{SandboxId: "sb_1", Port: port, Data: []byte("first ")}); err != nil {
		t.Fatal(err)
	}
	var said []byte
	for {
		m, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		said = append(said, m.GetData()...)
		if m.GetEnd() {
			break
		}
	}
	big := bytes.Repeat([]byte("x"), 1<<20)
	if err := errors.Join(st.Send(&guestv1.ConnectRequest{Data: big}), st.CloseSend()); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the call ended with %v", err)
	}
	if b := <-got; string(said) != "welcome" || string(b) != "first "+string(big) {
		t.Errorf("said %q, got %d bytes", said, len(b))
	}
}

func TestAPortThatNothingListensOnIsSaidToBeClosed(t *testing.T) {
	f := newFixture(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := uint32(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	for port, code := range map[uint32]codes.Code{free: codes.FailedPrecondition, 0: codes.InvalidArgument, 65536: codes.InvalidArgument} {
		st, err := guestv1.NewPortServiceClient(f.dial().conn).Connect(testContext(t))
		if err == nil {
			err = st.Send(&guestv1.ConnectRequest{SandboxId: "sb_1", Port: port})
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err = st.Recv(); status.Code(err) != code || !strings.Contains(err.Error(), "port") {
			t.Errorf("port %d: %v", port, err)
		}
	}
}

func TestAClientThatGoesEndsItsConnection(t *testing.T) {
	f := newFixture(t)
	ended := make(chan struct{})
	port := program(t, func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		close(ended)
	})
	st, err := guestv1.NewPortServiceClient(f.dial().conn).Connect(testContext(t))
	if err == nil {
		err = st.Send(&guestv1.ConnectRequest{SandboxId: "sb_1", Port: port})
	}
	if err == nil {
		_, err = st.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	f.server.grpc.Stop()
	<-ended
}
