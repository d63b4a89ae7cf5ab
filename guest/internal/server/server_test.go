package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/guest/internal/account"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testUID = 54321

// kernel stands for what a test must not change of the machine that it runs on.
type kernel struct{ name string }

func (*kernel) SetTime(time.Time) (time.Duration, error) { return 3 * time.Second, nil }
func (*kernel) AddEntropy([]byte) error                  { return nil }
func (k *kernel) SetHostname(n string) error             { k.name = n; return nil }
func (k *kernel) Hostname() (string, error)              { return k.name, nil }

// fixture is a server on a loopback port, with an unprivileged default user.
type fixture struct {
	t       *testing.T
	config  Config
	server  *Server
	addr    string
	home    string
	stopped chan error
	ended   chan struct{} // closed by Shutdown
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("commands and files are other users': needs root")
	}
	dir := t.TempDir()
	f := &fixture{t: t, home: filepath.Join(dir, "home"), ended: make(chan struct{})}
	passwd := fmt.Sprintf("root:x:0:0::/root:/bin/sh\nuser:x:%d:%d::%s:/bin/sh\n", testUID, testUID, f.home)
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o711), os.Chmod(dir, 0o711), os.Mkdir(f.home, 0o755), os.Chown(f.home, testUID, testUID),
		os.Mkdir(filepath.Join(dir, "etc"), 0o755), os.WriteFile(filepath.Join(dir, "passwd"), []byte(passwd), 0o644)); err != nil {
		t.Fatal(err)
	}
	f.config = Config{
		Accounts: account.Database{Passwd: filepath.Join(dir, "passwd"), Group: filepath.Join(dir, "group")}, Filesystem: dir,
		Identity: filepath.Join(dir, "etc"), Kernel: &kernel{name: "before"}, LeaseSocket: filepath.Join(dir, "lease"), Memory: filepath.Join(dir, "memory"),
		Shutdown: func() error { close(f.ended); return nil },
	}
	f.start()
	t.Cleanup(f.stop)
	return f
}

func (f *fixture) start() {
	f.t.Helper()
	var err error
	if f.server, err = New(f.config); err != nil {
		f.t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	f.addr, f.stopped = l.Addr().String(), make(chan error, 1)
	go func() { f.stopped <- f.server.Serve(l.(*net.TCPListener)) }()
}

func (f *fixture) stop() {
	if err := f.server.Close(); err != nil {
		f.t.Error(err)
	}
	<-f.stopped
}

type client struct {
	conn *grpc.ClientConn
	guestv1.GuestServiceClient
	guestv1.ProcessServiceClient
	guestv1.FileServiceClient
}

// dial makes a connection of its own.
func (f *fixture) dial() *client {
	f.t.Helper()
	conn, err := grpc.NewClient(f.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	return &client{conn, guestv1.NewGuestServiceClient(conn), guestv1.NewProcessServiceClient(conn), guestv1.NewFileServiceClient(conn)}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// wantError checks code and reason.
func wantError(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && st.Code() == code && info.GetReason() == reason && info.GetDomain() == domain {
			return
		}
	}
	t.Errorf("%v (%v), want %v with reason %s", err, st.Details(), code, reason)
}

func sh(script string) *guestv1.ExecRequest {
	return &guestv1.ExecRequest{Cmd: "/bin/sh", Args: []string{"-c", script}}
}

func TestExecAnswersWithOutputCodeAndUsage(t *testing.T) {
	f := newFixture(t)
	ctx, c := testContext(t), f.dial()
	r, err := c.Exec(ctx, &guestv1.ExecRequest{Cmd: "/bin/sh", Args: []string{"-c", "cat; echo err >&2; exit 4"}, Stdin: []byte("in")})
	if err != nil || r.GetExitCode() != 4 || r.GetStdout() != "in" || r.GetStderr() != "err\n" || r.StdoutRaw != nil || r.GetUsage().GetWallUsec() <= 0 {
		t.Errorf("%v, %v", r, err)
	}
	r, err = c.Exec(ctx, sh(`printf 'a\377\376b'`))
	if err != nil || r.GetStdout() != "a\uFFFDb" || !bytes.Equal(r.GetStdoutRaw(), []byte("a\xff\xfeb")) || r.StderrRaw != nil {
		t.Errorf("not UTF-8: %q, %q, %v", r.GetStdout(), r.GetStdoutRaw(), err)
	}
	// Two bytes each, from an odd offset on: the limit falls into the middle of one.
	r, err = c.Exec(ctx, sh(`printf x; yes ü | tr -d '\n' | head -c 2000000`))
	if err != nil || !r.GetStdoutTruncated() || len(r.GetStdout()) != 1<<20-1 || r.StdoutRaw != nil {
		t.Errorf("long UTF-8: %d bytes, truncated %v, raw %d, %v", len(r.GetStdout()), r.GetStdoutTruncated(), len(r.GetStdoutRaw()), err)
	}
	r, err = c.Exec(ctx, &guestv1.ExecRequest{Cmd: "no-such-command"})
	if err != nil || r.GetExitCode() != 127 || !strings.Contains(r.GetError(), "no-such-command") || r.GetStderr() != r.GetError()+"\n" {
		t.Errorf("%v, %v", r, err)
	}
	_, err = c.Exec(ctx, &guestv1.ExecRequest{Cmd: "id", Cwd: "relative"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD")
	_, err = c.Exec(ctx, &guestv1.ExecRequest{Cmd: "id", User: "nobody-such"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD")
}

func TestAnExecWhoseCallerGoesAwayIsKilled(t *testing.T) {
	f := newFixture(t)
	ctx, c := testContext(t), f.dial()
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := c.Exec(short, &guestv1.ExecRequest{Cmd: "sleep", Args: []string{"1000"}}); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
	awaitNoneRunning(t, ctx, c)
}

func awaitNoneRunning(t *testing.T, ctx context.Context, c *client) {
	t.Helper()
	for running := true; running; {
		r, err := c.ListProcesses(ctx, &guestv1.ListProcessesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		running = false
		for _, p := range r.GetProcesses() {
			running = running || p.GetRunning()
		}
	}
}

// stream is an exec stream after its first frame.
type testStream struct {
	t *testing.T
	guestv1.ProcessService_ExecStreamClient
	id string
}

func open(t *testing.T, ctx context.Context, c *client, first *guestv1.ExecStreamRequest) *testStream {
	t.Helper()
	st, err := c.ExecStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := &testStream{t, st, ""}
	s.send(first)
	r, err := st.Recv()
	if err != nil || r.GetStarted().GetProcessId() == "" {
		t.Fatalf("the first frame: %v, %v", r, err)
	}
	s.id = r.GetStarted().GetProcessId()
	return s
}

func startFrame(p *guestv1.ProcessStart) *guestv1.ExecStreamRequest {
	return &guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Start{Start: p}}
}

func attachFrame(id string, from uint64) *guestv1.ExecStreamRequest {
	return &guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Attach{Attach: &guestv1.ProcessAttach{ProcessId: id, FromSequence: from}}}
}

func script(s string) *guestv1.ProcessStart {
	return &guestv1.ProcessStart{Cmd: "/bin/sh", Args: []string{"-c", s}}
}

func (s *testStream) send(r *guestv1.ExecStreamRequest) {
	s.t.Helper()
	if err := s.Send(r); err != nil {
		s.t.Fatal(err)
	}
}

// until reads output until it contains want.
func (s *testStream) until(want string) (out string) {
	s.t.Helper()
	for !strings.Contains(out, want) {
		r, err := s.Recv()
		if err != nil || r.GetOutput() == nil {
			s.t.Fatalf("%q, then %v, %v", out, r, err)
		}
		out += string(r.GetOutput().GetData())
	}
	return out
}

// rest reads to the end.
func (s *testStream) rest() (out string, exited *guestv1.ProcessExited, err error) {
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out, exited, nil
		}
		if err != nil {
			return out, exited, err
		}
		out += string(r.GetOutput().GetData())
		if r.GetExited() != nil {
			exited = r.GetExited()
		}
	}
}

func TestAStreamCarriesInputSignalsSizeAndTheExit(t *testing.T) {
	f := newFixture(t)
	ctx, c := testContext(t), f.dial()
	s := open(t, ctx, c, startFrame(script("echo out; echo err >&2; cat; exit 6")))
	s.send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: []byte("in")}})
	s.send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_CloseStdin{CloseStdin: &guestv1.CloseStdin{}}})
	out, exited, err := s.rest()
	if err != nil || exited.GetExitCode() != 6 || len(out) != len("out\nerr\nin") || !strings.HasSuffix(out, "in") || exited.GetUsage().GetWallUsec() <= 0 {
		t.Errorf("%q, %v, %v", out, exited, err)
	}
	p := script("trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
	p.Terminal = &guestv1.TerminalSize{Rows: 10, Cols: 20}
	s = open(t, ctx, c, startFrame(p))
	s.until("ready")
	s.send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Resize{Resize: &guestv1.TerminalSize{Rows: 11, Cols: 21}}})
	s.send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Signal{Signal: "TERM"}})
	if _, exited, err := s.rest(); err != nil || exited.GetExitCode() != 7 {
		t.Errorf("%v, %v", exited, err)
	}
	st, err := c.ExecStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(startFrame(&guestv1.ProcessStart{Cmd: "no-such-command"})); err != nil {
		t.Fatal(err)
	}
	if r, err := st.Recv(); err != nil || r.GetExited().GetExitCode() != 127 || r.GetExited().GetError() == "" {
		t.Errorf("%v, %v", r, err)
	}
}

func TestFramesThatAreNotLegalEndTheStream(t *testing.T) {
	f := newFixture(t)
	ctx, c := testContext(t), f.dial()
	for _, first := range []*guestv1.ExecStreamRequest{
		{}, {Frame: &guestv1.ExecStreamRequest_Signal{Signal: "TERM"}}, startFrame(&guestv1.ProcessStart{}),
		startFrame(&guestv1.ProcessStart{Cmd: "sh", Terminal: &guestv1.TerminalSize{}}),
	} {
		st, err := c.ExecStream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Send(first); err != nil {
			t.Fatal(err)
		}
		_, err = st.Recv()
		wantError(t, err, codes.InvalidArgument, "INVALID_FIELD")
	}
	for _, later := range []*guestv1.ExecStreamRequest{
		{}, startFrame(script("true")), {Frame: &guestv1.ExecStreamRequest_Signal{Signal: "NONE"}},
		{Frame: &guestv1.ExecStreamRequest_Resize{Resize: &guestv1.TerminalSize{Rows: 70000, Cols: 1}}},
		{Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: make([]byte, maxFrame+1)}},
	} {
		s := open(t, ctx, c, startFrame(&guestv1.ProcessStart{Cmd: "sleep", Args: []string{"1000"}}))
		s.send(later)
		_, _, err := s.rest()
		wantError(t, err, codes.InvalidArgument, "INVALID_FIELD")
	}
	awaitNoneRunning(t, ctx, c)
	st, err := c.ExecStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(attachFrame("proc_none", 0)); err != nil {
		t.Fatal(err)
	}
	_, err = st.Recv()
	wantError(t, err, codes.NotFound, "PROCESS_NOT_FOUND")
}

func TestWhatBecomesOfAProcessWhoseClientGoes(t *testing.T) {
	f := newFixture(t)
	ctx, c := testContext(t), f.dial()
	forever := script("echo begun; exec sleep 1000")

	closed := open(t, ctx, c, startFrame(forever))
	closed.until("begun")
	if err := closed.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, exited, err := closed.rest(); err != nil || exited.GetSignal() != "SIGKILL" {
		t.Errorf("the request side closed: %v, %v", exited, err)
	}

	gone, leave := context.WithCancel(ctx)
	open(t, gone, c, startFrame(forever)).until("begun")
	leave()
	awaitNoneRunning(t, ctx, c)

	left := open(t, ctx, c, startFrame(forever))
	left.until("begun")
	left.send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Detach{Detach: &guestv1.Detach{}}})
	if _, exited, err := left.rest(); err != nil || exited != nil {
		t.Errorf("detached: %v, %v", exited, err)
	}
	again := open(t, ctx, c, attachFrame(left.id, 2))
	if out := again.until("gun\n"); out != "gun\n" {
		t.Errorf("attached again: %q", out)
	}
	other := open(t, ctx, f.dial(), attachFrame(left.id, 0))
	_, _, err := again.rest()
	wantError(t, err, codes.Aborted, "ATTACHED_ELSEWHERE")
	if _, err := c.SignalProcess(ctx, &guestv1.SignalProcessRequest{ProcessId: left.id, Signal: "SIGTERM"}); err != nil {
		t.Error(err)
	}
	if _, exited, err := other.rest(); err != nil || exited.GetSignal() != "SIGTERM" {
		t.Errorf("%v, %v", exited, err)
	}
}

func TestAHundredMegabytesComeThroughInOrder(t *testing.T) {
	f := newFixture(t)
	ctx, c := testContext(t), f.dial()
	const size = 100 << 20
	s := open(t, ctx, c, startFrame(&guestv1.ProcessStart{Cmd: "head", Args: []string{"-c", fmt.Sprint(size), "/dev/zero"}}))
	for n := uint64(0); ; {
		r, err := s.Recv()
		if err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if r.GetExited() != nil {
			if n != size || r.GetExited().GetExitCode() != 0 {
				t.Errorf("%d bytes, %v", n, r)
			}
			return
		}
		if o := r.GetOutput(); o.GetSequence() != n || len(o.GetData()) > 64<<10 {
			t.Fatalf("%d bytes at %d after %d", len(o.GetData()), o.GetSequence(), n)
		}
		n += uint64(len(r.GetOutput().GetData()))
	}
}

func restoreRequest(id string) *guestv1.AfterRestoreRequest {
	return &guestv1.AfterRestoreRequest{RestoreId: id, SandboxId: "sb_" + id, NowUnixNs: time.Now().UnixNano(), Entropy: make([]byte, 64),
		Hostname: "host-" + id, MachineId: strings.Repeat("ab", 16), Env: map[string]string{"RESTORED": id}}
}

func TestARestoreEndsStreamsButNoProcessesAndHappensOncePerId(t *testing.T) {
	f := newFixture(t)
	ctx, before, host := testContext(t), f.dial(), f.dial()
	s := open(t, ctx, before, startFrame(script("echo begun; read line; echo line=$line; exit 9")))
	s.until("begun")
	if _, err := host.Quiesce(ctx, &guestv1.QuiesceRequest{SyncOnly: true}); err != nil {
		t.Fatal(err)
	}
	// A client whose connection breaks before anybody has said that this is a restored guest.
	early := open(t, ctx, f.dial(), startFrame(script("echo begun; exec sleep 1000")))
	early.until("begun")
	reset := f.dial()
	broken := open(t, ctx, reset, startFrame(script("echo begun; exec sleep 1000")))
	broken.until("begun")
	reset.conn.Close()
	r, err := host.AfterRestore(ctx, restoreRequest("1"))
	if err != nil || !r.GetEntropyReseeded() || r.GetClockStepNs() != int64(3*time.Second) || r.GetHostname() != "host-1" || r.GetMachineId() != strings.Repeat("ab", 16) || r.GetStreamsEnded() != 3 || r.GetBootId() == "" {
		t.Errorf("%v, %v", r, err)
	}
	for _, s := range []*testStream{s, early} {
		if _, _, err := s.rest(); status.Code(err) != codes.Unavailable {
			t.Errorf("a stream that was open: %v", err)
		}
	}
	again, err := host.AfterRestore(ctx, restoreRequest("1"))
	if err != nil || again.GetStreamsEnded() != 3 {
		t.Errorf("again: %v, %v", again, err)
	}
	attached := open(t, ctx, host, attachFrame(s.id, 0))
	attached.send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: []byte("x\n")}})
	if out, exited, err := attached.rest(); err != nil || out != "begun\nline=x\n" || exited.GetExitCode() != 9 {
		t.Errorf("%q, %v, %v", out, exited, err)
	}
	list, err := host.ListProcesses(ctx, &guestv1.ListProcessesRequest{})
	if err != nil || !list.GetProcesses()[0].GetRunning() || !list.GetProcesses()[1].GetRunning() || list.GetProcesses()[2].GetExited().GetExitCode() != 9 {
		t.Errorf("%v, %v", list, err)
	}
	h, err := host.Health(ctx, &guestv1.HealthRequest{})
	if err != nil || h.GetSandboxId() != "sb_1" || h.GetKernel() == "" || h.GetUptimeSec() <= 0 {
		t.Errorf("%v, %v", h, err)
	}
	bad := restoreRequest("2")
	bad.Entropy = bad.Entropy[:31]
	_, err = host.AfterRestore(ctx, bad)
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD")
	_, err = host.AfterRestore(ctx, restoreRequest(""))
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD")
}

func TestTheIdentityOutlivesGuestd(t *testing.T) {
	f := newFixture(t)
	ctx := testContext(t)
	if _, err := f.dial().AfterRestore(ctx, restoreRequest("1")); err != nil {
		t.Fatal(err)
	}
	f.stop()
	f.start()
	c := f.dial()
	if h, err := c.Health(ctx, &guestv1.HealthRequest{}); err != nil || h.GetSandboxId() != "sb_1" {
		t.Errorf("%v, %v", h, err)
	}
	if r, err := c.Exec(ctx, sh("echo $RESTORED")); err != nil || r.GetStdout() != "1\n" {
		t.Errorf("%v, %v", r, err)
	}
	if b, err := os.ReadFile(f.config.Memory); err != nil || bytes.Contains(b, make([]byte, 32)) {
		t.Errorf("the entropy is kept: %v", err)
	}
	if st, err := os.Stat(f.config.Memory); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestMetricsCountWhoHoldsTheTimer(t *testing.T) {
	f := newFixture(t)
	ctx, c := testContext(t), f.dial()
	holders := func() uint32 {
		t.Helper()
		r, err := c.GetMetrics(ctx, &guestv1.GetMetricsRequest{})
		if err != nil || r.GetVcpus() == 0 || r.GetMemoryTotalBytes() == 0 || r.GetDiskTotalBytes() == 0 {
			t.Fatalf("%v, %v", r, err)
		}
		return r.GetKeepAliveHolders()
	}
	if n := holders(); n != 0 {
		t.Errorf("%d at first", n)
	}
	open(t, ctx, c, startFrame(&guestv1.ProcessStart{Cmd: "sleep", Args: []string{"1000"}, Detached: true, KeepAlive: true}))
	open(t, ctx, c, startFrame(&guestv1.ProcessStart{Cmd: "sleep", Args: []string{"1000"}, Detached: true}))
	conn, err := net.Dial("unix", f.config.LeaseSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for holders() != 2 && ctx.Err() == nil { // the lease is counted a moment after it was taken
	}
	if n := holders(); n != 2 {
		t.Errorf("%d, want a process and a lease", n)
	}
}

func TestShutdownIsPassedOnToInit(t *testing.T) {
	f := newFixture(t)
	if _, err := f.dial().Shutdown(testContext(t), &guestv1.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	<-f.ended
}
