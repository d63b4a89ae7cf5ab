package relay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/leaktest"
	"github.com/coveyhq/covey/services/chassis/relay"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }

const sandbox = "sb_01ARZ3NDEKTSV4RRFFQ69G5FAV"

// guest is what calls end up at.
type guest struct {
	guestv1.UnimplementedFileServiceServer
	guestv1.UnimplementedProcessServiceServer
	exec   func(context.Context, *guestv1.ExecRequest) (*guestv1.ExecResponse, error)
	stream func(grpc.BidiStreamingServer[guestv1.ExecStreamRequest, guestv1.ExecStreamResponse]) error
	write  func(grpc.ClientStreamingServer[guestv1.WriteFileRequest, guestv1.WriteFileResponse]) error
}

func (g *guest) Exec(ctx context.Context, r *guestv1.ExecRequest) (*guestv1.ExecResponse, error) {
	return g.exec(ctx, r)
}

func (g *guest) ExecStream(s grpc.BidiStreamingServer[guestv1.ExecStreamRequest, guestv1.ExecStreamResponse]) error {
	return g.stream(s)
}

func (g *guest) WriteFile(s grpc.ClientStreamingServer[guestv1.WriteFileRequest, guestv1.WriteFileResponse]) error {
	return g.write(s)
}

// run runs a daemon until the test's end.
func run(t *testing.T, service string, register func(*grpc.Server), opts ...chassis.Option) *chassis.Daemon {
	t.Helper()
	d, err := chassis.New(chassis.Config{Service: service, Drain: 100 * time.Millisecond}, append(opts, chassis.WithLogOutput(t.Output()))...)
	if err != nil {
		t.Fatal(err)
	}
	register(d.Server())
	if err := d.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d
}

func (g *guest) serve(t *testing.T) *chassis.Daemon {
	return run(t, "covey-host", func(s *grpc.Server) {
		guestv1.RegisterFileServiceServer(s, g)
		guestv1.RegisterProcessServiceServer(s, g)
	})
}

// mesh is a daemon that relays to guests, and a client of it.
type mesh struct {
	files     guestv1.FileServiceClient
	processes guestv1.ProcessServiceClient
	conn      *grpc.ClientConn
	refreshed atomic.Int32
	released  atomic.Int32
	frames    atomic.Int32
	at        string // where the sandbox is believed to be
}

// newMesh believes the sandbox at first, and after a refresh at second.
func newMesh(t *testing.T, first, second string) *mesh {
	t.Helper()
	m := &mesh{at: first}
	var d *chassis.Daemon
	r := relay.New(func(method string) bool { return method != "/covey.guest.v1.FileService/RemoveFile" },
		func(_ context.Context, _, id string, refresh bool) (*grpc.ClientConn, func(), error) {
			if id != sandbox {
				return nil, nil, apierr.E(codes.NotFound, "SANDBOX_NOT_FOUND", "no sandbox "+id)
			}
			if refresh {
				m.refreshed.Add(1)
				m.at = second
			}
			c, err := d.DialAddr(m.at)
			return c, func() { m.released.Add(1) }, err
		}, relay.Hooks{OnFrame: func(string, string) { m.frames.Add(1) }})
	d = run(t, "covey-gateway", func(*grpc.Server) {}, chassis.WithRelay(r))
	c, err := chassis.New(chassis.Config{Service: "covey-test"}, chassis.WithLogOutput(t.Output()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if m.conn, err = c.DialAddr(d.Addr()); err != nil {
		t.Fatal(err)
	}
	m.files, m.processes = guestv1.NewFileServiceClient(m.conn), guestv1.NewProcessServiceClient(m.conn)
	return m
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestCallsPassWithEverythingTheyCarry(t *testing.T) {
	var got metadata.MD
	g := &guest{exec: func(ctx context.Context, r *guestv1.ExecRequest) (*guestv1.ExecResponse, error) {
		got, _ = metadata.FromIncomingContext(ctx)
		if _, ok := ctx.Deadline(); !ok {
			return nil, errors.New("the deadline did not pass")
		}
		if r.GetCmd() == "fail" {
			grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "t"))
			return nil, apierr.E(codes.FailedPrecondition, "NO_SUCH_USER", "no user", "user", "bob")
		}
		grpc.SetHeader(ctx, metadata.Pairs("x-header", "h"))
		grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "t"))
		return &guestv1.ExecResponse{Stdout: r.GetCmd()}, nil
	}}
	m := newMesh(t, g.serve(t).Addr(), "")
	ctx := metadata.AppendToOutgoingContext(within(t), tenant.Key, "acme", "x-mine", "1", "authorization", "Bearer secret", "cookie", "secret")
	var header, trailer metadata.MD
	r, err := m.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: sandbox, Cmd: "ok"}, grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil || r.GetStdout() != "ok" || header.Get("x-header") == nil || trailer.Get("x-trailer") == nil {
		t.Errorf("got %v, %v, header %v, trailer %v", r, err, header, trailer)
	}
	if got.Get("x-mine") == nil || len(got.Get(tenant.Key)) != 1 || got.Get(tenant.Key)[0] != "acme" || got.Get("authorization") != nil || got.Get("cookie") != nil {
		t.Errorf("the guest's metadata is %v", got)
	}
	_, err = m.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: sandbox, Cmd: "fail"}, grpc.Trailer(&trailer))
	if info := apierr.Info(err); status.Code(err) != codes.FailedPrecondition || info.GetMetadata()["user"] != "bob" || trailer.Get("x-trailer") == nil {
		t.Errorf("got %v, %v, trailer %v", err, info, trailer)
	}
	if m.released.Load() != 2 {
		t.Errorf("%d of 2 connections were released", m.released.Load())
	}
}

func TestCallsThatCannotPassSayWhy(t *testing.T) {
	m := newMesh(t, "127.0.0.1:1", "127.0.0.1:1")
	for name, test := range map[string]struct {
		call   func(context.Context) error
		code   codes.Code
		reason string
	}{
		"no sandbox id": {func(ctx context.Context) error {
			_, err := m.processes.Exec(ctx, &guestv1.ExecRequest{})
			return err
		}, codes.InvalidArgument, "INVALID_FIELD"},
		"a method that is not relayed": {func(ctx context.Context) error {
			_, err := m.files.RemoveFile(ctx, &guestv1.RemoveFileRequest{SandboxId: sandbox})
			return err
		}, codes.Unimplemented, "UNKNOWN_METHOD"},
		"an unknown sandbox": {func(ctx context.Context) error {
			_, err := m.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: "sb_other"})
			return err
		}, codes.NotFound, "SANDBOX_NOT_FOUND"},
		"a host that is gone": {func(ctx context.Context) error {
			_, err := m.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: sandbox})
			return err
		}, codes.Unavailable, "UNAVAILABLE"},
		"a stream without a message": {func(ctx context.Context) error {
			s, err := m.files.WriteFile(ctx)
			if err != nil {
				return err
			}
			_, err = s.CloseAndRecv()
			return err
		}, codes.InvalidArgument, "INVALID_FIELD"},
	} {
		if err := test.call(within(t)); status.Code(err) != test.code || apierr.Reason(err) != test.reason {
			t.Errorf("%s: got %v, reason %q", name, err, apierr.Reason(err))
		}
	}
}

func TestStreamsPassBothWaysAndHalfClose(t *testing.T) {
	g := &guest{stream: func(s grpc.BidiStreamingServer[guestv1.ExecStreamRequest, guestv1.ExecStreamResponse]) error {
		for {
			r, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return s.Send(&guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Exited{Exited: &guestv1.ProcessExited{ExitCode: 7}}})
			}
			if err != nil {
				return err
			}
			out := &guestv1.Output{Data: r.GetStdin()}
			if err := s.Send(&guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Output{Output: out}}); err != nil {
				return err
			}
		}
	}}
	m := newMesh(t, g.serve(t).Addr(), "")
	s, err := m.processes.ExecStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		want := fmt.Appendf(nil, "line %d", i)
		q := &guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: want}}
		if i == 0 {
			q.SandboxId = sandbox
		}
		if err := s.Send(q); err != nil {
			t.Fatal(err)
		}
		r, err := s.Recv()
		if err != nil || !bytes.Equal(r.GetOutput().GetData(), want) {
			t.Fatalf("got %v, %v", r, err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	r, err := s.Recv()
	if err != nil || r.GetExited().GetExitCode() != 7 {
		t.Errorf("got %v, %v", r, err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last frame: %v", err)
	}
	if m.frames.Load() != 101 {
		t.Errorf("%d frames were counted as activity, not 101", m.frames.Load())
	}
}

func TestCancellationReachesTheGuest(t *testing.T) {
	ended := make(chan error, 1)
	g := &guest{stream: func(s grpc.BidiStreamingServer[guestv1.ExecStreamRequest, guestv1.ExecStreamResponse]) error {
		if err := s.Send(&guestv1.ExecStreamResponse{}); err != nil {
			return err
		}
		<-s.Context().Done()
		ended <- s.Context().Err()
		return s.Context().Err()
	}}
	m := newMesh(t, g.serve(t).Addr(), "")
	ctx, cancel := context.WithCancel(within(t))
	s, err := m.processes.ExecStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&guestv1.ExecStreamRequest{SandboxId: sandbox}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-ended:
	case <-within(t).Done():
		t.Error("the guest was not told")
	}
}

func TestASlowGuestSlowsTheCaller(t *testing.T) {
	gate := make(chan struct{})
	total := 0
	g := &guest{write: func(s grpc.ClientStreamingServer[guestv1.WriteFileRequest, guestv1.WriteFileResponse]) error {
		<-gate
		for {
			r, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return s.SendAndClose(&guestv1.WriteFileResponse{})
			}
			if err != nil {
				return err
			}
			total += len(r.GetData())
		}
	}}
	m := newMesh(t, g.serve(t).Addr(), "")
	s, err := m.files.WriteFile(within(t))
	if err != nil {
		t.Fatal(err)
	}
	const chunk, size = 256 << 10, 64 << 20
	var sent atomic.Int64
	done := make(chan error, 1)
	go func() {
		q := &guestv1.WriteFileRequest{SandboxId: sandbox, Data: make([]byte, chunk)}
		for sent.Load() < size {
			if err := s.Send(q); err != nil {
				done <- err
				return
			}
			sent.Add(chunk)
		}
		_, err := s.CloseAndRecv()
		done <- err
	}()
	// While the guest reads nothing, what has been sent stops growing far below the whole.
	var before int64 = -1
	for sent.Load() != before || before == 0 {
		before = sent.Load()
		select {
		case <-time.After(300 * time.Millisecond):
		case err := <-done:
			t.Fatalf("the caller was done before the guest read anything: %v", err)
		}
	}
	if before > size/4 {
		t.Errorf("%d MiB went into nowhere", before>>20)
	}
	close(gate)
	if err := <-done; err != nil || total != size {
		t.Errorf("%d of %d bytes arrived: %v", total, size, err)
	}
}

func TestAStaleLocationIsFoundAgain(t *testing.T) {
	notHere := func() error {
		return apierr.E(codes.NotFound, apierr.SandboxNotHere, "not here", "sandbox_id", sandbox)
	}
	old := &guest{
		exec: func(context.Context, *guestv1.ExecRequest) (*guestv1.ExecResponse, error) { return nil, notHere() },
		write: func(s grpc.ClientStreamingServer[guestv1.WriteFileRequest, guestv1.WriteFileResponse]) error {
			if _, err := s.Recv(); err != nil {
				return err
			}
			return notHere()
		},
	}
	now := &guest{
		exec: func(_ context.Context, r *guestv1.ExecRequest) (*guestv1.ExecResponse, error) {
			return &guestv1.ExecResponse{Stdout: r.GetCmd()}, nil
		},
		write: func(s grpc.ClientStreamingServer[guestv1.WriteFileRequest, guestv1.WriteFileResponse]) error {
			var n int64
			for {
				r, err := s.Recv()
				if errors.Is(err, io.EOF) {
					return s.SendAndClose(&guestv1.WriteFileResponse{WrittenBytes: n})
				}
				if err != nil {
					return err
				}
				n += int64(len(r.GetData()))
			}
		},
	}
	nowAddr := now.serve(t).Addr()
	for name, first := range map[string]string{"it moved": old.serve(t).Addr(), "its host is gone": "127.0.0.1:1"} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, first, nowAddr)
			r, err := m.processes.Exec(within(t), &guestv1.ExecRequest{SandboxId: sandbox, Cmd: "x"})
			if err != nil || r.GetStdout() != "x" || m.refreshed.Load() != 1 {
				t.Errorf("got %v, %v after %d refreshes", r, err, m.refreshed.Load())
			}
		})
		t.Run(name+" during a stream", func(t *testing.T) {
			m := newMesh(t, first, nowAddr)
			s, err := m.files.WriteFile(within(t))
			if err != nil {
				t.Fatal(err)
			}
			for range 5 {
				if err := s.Send(&guestv1.WriteFileRequest{SandboxId: sandbox, Data: make([]byte, 1000)}); err != nil {
					t.Fatal(err)
				}
			}
			r, err := s.CloseAndRecv()
			if err != nil || r.GetWrittenBytes() != 5000 {
				t.Errorf("got %v, %v: what had been sent must be sent again, once", r, err)
			}
		})
	}
	t.Run("it is nowhere", func(t *testing.T) {
		addr := old.serve(t).Addr()
		m := newMesh(t, addr, addr)
		_, err := m.processes.Exec(within(t), &guestv1.ExecRequest{SandboxId: sandbox})
		if apierr.Reason(err) != apierr.SandboxNotHere || m.refreshed.Load() != 1 {
			t.Errorf("got %v after %d refreshes", err, m.refreshed.Load())
		}
	})
}

func TestACallThatSentTooMuchIsNotSentAgain(t *testing.T) {
	got := make(chan struct{})
	old := &guest{write: func(s grpc.ClientStreamingServer[guestv1.WriteFileRequest, guestv1.WriteFileResponse]) error {
		for range 3 {
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
		close(got)
		return apierr.E(codes.NotFound, apierr.SandboxNotHere, "not here")
	}}
	m := newMesh(t, old.serve(t).Addr(), "127.0.0.1:1")
	s, err := m.files.WriteFile(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Send(&guestv1.WriteFileRequest{SandboxId: sandbox, Data: make([]byte, 40<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	<-got
	if _, err := s.CloseAndRecv(); apierr.Reason(err) != apierr.SandboxNotHere || m.refreshed.Load() != 0 {
		t.Errorf("got %v after %d refreshes", err, m.refreshed.Load())
	}
}
