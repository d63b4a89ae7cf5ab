package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/guest/internal/process"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// processService serves covey.guest.v1.ProcessService.
type processService struct {
	guestv1.UnimplementedProcessServiceServer
	table   *process.Table
	clients *clients
}

func (s *processService) Exec(ctx context.Context, r *guestv1.ExecRequest) (*guestv1.ExecResponse, error) {
	spec := process.Spec{Cmd: r.GetCmd(), Args: r.GetArgs(), Dir: r.GetCwd(), Env: r.GetEnv(), User: r.GetUser(), Timeout: time.Duration(r.GetTimeoutSec()) * time.Second}
	res, p, err := s.table.Run(ctx, spec, r.GetStdin())
	var failed *process.StartError
	switch {
	case errors.As(err, &failed):
		return &guestv1.ExecResponse{ExitCode: int32(failed.Code), Stderr: failed.Reason + "\n", Error: failed.Reason, Usage: &guestv1.ResourceUsage{}}, nil
	case err != nil && p != nil:
		s.clients.left(p, nil)
		return nil, mapped(err)
	case err != nil:
		return nil, mapped(err)
	}
	out := &guestv1.ExecResponse{
		ExitCode: int32(res.Code), Signal: res.Signal, TimedOut: res.TimedOut, Usage: usageOf(res.Exit),
		StdoutTruncated: res.StdoutTruncated, StderrTruncated: res.StderrTruncated,
	}
	out.Stdout, out.StdoutRaw = text(res.Stdout, res.StdoutTruncated)
	out.Stderr, out.StderrRaw = text(res.Stderr, res.StderrTruncated)
	return out, nil
}

// text makes UTF-8 of output, and returns the exact bytes where it had to replace some. A character that the truncation
// cut in two is no such case.
func text(b []byte, truncated bool) (string, []byte) {
	if truncated {
		b = b[:len(b)-cutOff(b)]
	}
	if utf8.Valid(b) {
		return string(b), nil
	}
	return strings.ToValidUTF8(string(b), "\uFFFD"), b
}

// cutOff is how many bytes at the end begin a character that is not whole.
func cutOff(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-n:]) {
				return n
			}
			break
		}
	}
	return 0
}

func usageOf(e process.Exit) *guestv1.ResourceUsage {
	return &guestv1.ResourceUsage{
		UserCpuUsec: e.User.Microseconds(), SystemCpuUsec: e.System.Microseconds(), MaxRssBytes: e.MaxRSS,
		WallUsec: e.Wall.Microseconds(), OomKilled: e.OOMKilled,
	}
}

func exitedOf(e process.Exit) *guestv1.ProcessExited {
	return &guestv1.ProcessExited{ExitCode: int32(e.Code), Signal: e.Signal, TimedOut: e.TimedOut, Usage: usageOf(e)}
}

func (s *processService) ListProcesses(context.Context, *guestv1.ListProcessesRequest) (*guestv1.ListProcessesResponse, error) {
	out := &guestv1.ListProcessesResponse{}
	for _, p := range s.table.List() {
		m := &guestv1.Process{
			ProcessId: p.ID, Pid: int32(p.PID()), Tag: p.Spec.Tag, Command: append([]string{p.Spec.Cmd}, p.Spec.Args...), User: p.User,
			Running: p.Running(), StartedUnixMs: p.Started.UnixMilli(), KeepAlive: p.Spec.KeepAlive, Attached: p.Attached(),
			Terminal: p.Spec.Terminal != nil,
		}
		if !m.Running {
			m.Exited = exitedOf(p.Exit())
		}
		out.Processes = append(out.Processes, m)
	}
	return out, nil
}

func (s *processService) SignalProcess(_ context.Context, r *guestv1.SignalProcessRequest) (*guestv1.SignalProcessResponse, error) {
	if r.GetProcessId() == "" {
		return nil, field("process_id", "must be a process's id, is empty")
	}
	sig, err := process.ParseSignal(r.GetSignal())
	if err != nil {
		return nil, mapped(err)
	}
	p, err := s.table.Get(r.GetProcessId())
	if err != nil {
		return nil, mapped(err)
	}
	if err := p.Signal(sig); err != nil {
		return nil, mapped(err)
	}
	return &guestv1.SignalProcessResponse{}, nil
}

type execStream = grpc.BidiStreamingServer[guestv1.ExecStreamRequest, guestv1.ExecStreamResponse]

func (s *processService) ExecStream(st execStream) error {
	first, err := st.Recv()
	if errors.Is(err, io.EOF) {
		return field("frame", "the first must be start or attach, the stream is empty")
	} else if err != nil {
		return err
	}
	p, from, err := s.begin(first)
	var failed *process.StartError
	if errors.As(err, &failed) {
		return st.Send(&guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Exited{Exited: &guestv1.ProcessExited{
			ExitCode: int32(failed.Code), Error: failed.Reason, Usage: &guestv1.ResourceUsage{}}}})
	} else if err != nil {
		return mapped(err)
	}
	ctx, open, done := s.clients.open(st.Context())
	defer done()
	err = s.carry(ctx, st, p, from, open)
	switch {
	case err == nil:
		return st.Send(&guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Exited{Exited: exitedOf(p.Exit())}})
	case errors.Is(err, errDetach):
		return nil
	case errors.Is(err, errRestored), errors.Is(err, process.ErrReplaced), errors.Is(err, process.ErrNotAttachable):
		return mapped(err) // the process is another client's, or nobody's: it goes on
	}
	s.clients.left(p, open)
	return mapped(err)
}

// begin starts the process that the first frame describes, or finds it.
func (s *processService) begin(first *guestv1.ExecStreamRequest) (p *process.Process, from uint64, err error) {
	switch {
	case first.GetStart() != nil:
		r := first.GetStart()
		spec := process.Spec{Cmd: r.GetCmd(), Args: r.GetArgs(), Dir: r.GetCwd(), Env: r.GetEnv(), User: r.GetUser(), Detached: r.GetDetached(),
			KeepAlive: r.GetKeepAlive(), Timeout: time.Duration(r.GetTimeoutSec()) * time.Second, Tag: r.GetTag()}
		if t := r.GetTerminal(); t != nil {
			size, err := sizeOf("start.terminal", t)
			if err != nil {
				return nil, 0, err
			}
			spec.Terminal = &size
		}
		p, err = s.table.Start(spec)
		return p, 0, err
	case first.GetAttach() != nil:
		p, err = s.table.Get(first.GetAttach().GetProcessId())
		return p, first.GetAttach().GetFromSequence(), err
	}
	return nil, 0, field("frame", "the first must be start or attach")
}

func sizeOf(name string, t *guestv1.TerminalSize) (process.Size, error) {
	const most = 1<<16 - 1
	if t.GetRows() < 1 || t.GetRows() > most || t.GetCols() < 1 || t.GetCols() > most {
		return process.Size{}, field(name, fmt.Sprintf("must have 1 to %d rows and columns, got %d and %d", most, t.GetRows(), t.GetCols()))
	}
	return process.Size{Rows: uint16(t.GetRows()), Cols: uint16(t.GetCols())}, nil
}

// errDetach: the client leaves the process running.
var errDetach = errors.New("detached")

// carry carries input and output until the process has ended, which is nil, or the stream has.
func (s *processService) carry(ctx context.Context, st execStream, p *process.Process, from uint64, open *stream) error {
	started := &guestv1.ProcessStarted{ProcessId: p.ID, Pid: int32(p.PID())}
	if err := st.Send(&guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Started{Started: started}}); err != nil {
		return err
	}
	in := &input{p: p, end: open.end, stdin: make(chan []byte, 1)}
	// Both end with the stream: its context is what Recv and the queue wait for, and the process's end closes its input.
	go in.receive(ctx, st)
	go in.write(ctx)
	chunk := &guestv1.Output{}
	frame := &guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Output{Output: chunk}}
	return p.Follow(ctx, from, func(c process.Chunk) error {
		chunk.Stream, chunk.Data, chunk.Sequence = guestv1.OutputStream_OUTPUT_STREAM_STDOUT, c.Data, c.Sequence
		if c.Stderr {
			chunk.Stream = guestv1.OutputStream_OUTPUT_STREAM_STDERR
		}
		return st.Send(frame)
	}, func(from, to uint64) error {
		return st.Send(&guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Gap{Gap: &guestv1.OutputGap{FromSequence: from, ToSequence: to}}})
	})
}

// input carries a client's frames to its process.
type input struct {
	p   *process.Process
	end context.CancelCauseFunc // ends the stream
	// stdin is what is still to be written; receive closes it. It is short: a process that does not read holds the client back, but a
	// signal that follows one frame still comes through.
	stdin chan []byte
}

func (in *input) receive(ctx context.Context, st execStream) {
	defer close(in.stdin)
	for {
		f, err := st.Recv()
		if errors.Is(err, io.EOF) {
			// The client said its last without detaching. It may still want to hear how the process ended.
			if !in.p.Detached() {
				in.p.Kill()
			}
			return
		}
		if err == nil {
			err = in.take(ctx, f)
		}
		if err != nil {
			in.end(err)
			return
		}
	}
}

// take does what one frame asks for; an error ends the stream.
func (in *input) take(ctx context.Context, f *guestv1.ExecStreamRequest) error {
	switch f := f.GetFrame().(type) {
	case *guestv1.ExecStreamRequest_Stdin:
		if len(f.Stdin) > maxFrame {
			return field("stdin", fmt.Sprintf("must be at most %d bytes a frame, got %d", maxFrame, len(f.Stdin)))
		}
		return in.queue(ctx, f.Stdin)
	case *guestv1.ExecStreamRequest_CloseStdin:
		return in.queue(ctx, nil)
	case *guestv1.ExecStreamRequest_Resize:
		size, err := sizeOf("resize", f.Resize)
		if err != nil {
			return err
		}
		return mapped(in.p.Resize(size))
	case *guestv1.ExecStreamRequest_Signal:
		sig, err := process.ParseSignal(f.Signal)
		if err != nil {
			return mapped(err)
		}
		return mapped(in.p.Signal(sig))
	case *guestv1.ExecStreamRequest_Detach:
		in.p.Detach()
		return errDetach
	}
	return field("frame", "after the first must be stdin, close_stdin, resize, signal or detach")
}

// maxFrame is the most bytes of input in one frame.
const maxFrame = 1 << 20

// queue hands bytes to write; nil closes the input.
func (in *input) queue(ctx context.Context, b []byte) error {
	if b != nil && len(b) == 0 {
		return nil
	}
	select {
	case in.stdin <- b:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// write writes what is queued. Where the process does not take it, it is dropped: a program may end without reading its input.
func (in *input) write(ctx context.Context) {
	for {
		select {
		case b, ok := <-in.stdin:
			switch {
			case !ok:
				return
			case b == nil:
				in.p.CloseInput()
			default:
				_ = in.p.Write(b)
			}
		case <-ctx.Done():
			return
		}
	}
}
