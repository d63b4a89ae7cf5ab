package meshtest

import (
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/creack/pty"
	"github.com/oklog/ulid/v2"
	"google.golang.org/grpc"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

type stream = grpc.BidiStreamingServer[guestv1.ExecStreamRequest, guestv1.ExecStreamResponse]

// process is a running or ended process whose whole output is kept.
type process struct {
	id   string
	spec *guestv1.ProcessStart
	cmd  *exec.Cmd
	in   io.WriteCloser
	tty  *os.File

	mu     sync.Mutex // guards the rest
	output []*guestv1.Output
	length uint64
	exited *guestv1.ProcessExited
	news   chan struct{} // closed and replaced at every change
}

func (h *host) start(dir string, spec *guestv1.ProcessStart) *process {
	p := &process{id: "proc_" + ulid.Make().String(), spec: spec, news: make(chan struct{})}
	p.cmd = command(dir, spec.GetCmd(), spec.GetArgs(), spec.GetEnv())
	var readers sync.WaitGroup
	err := p.launch(&readers)
	h.running.Go(func() {
		readers.Wait()
		if err == nil {
			err = p.cmd.Wait()
		}
		code, why := exitCode(err)
		p.change(func() { p.exited = &guestv1.ProcessExited{ExitCode: code, Error: why} })
	})
	return p
}

func (p *process) launch(readers *sync.WaitGroup) error {
	if t := p.spec.GetTerminal(); t != nil {
		f, err := pty.StartWithSize(p.cmd, &pty.Winsize{Rows: uint16(t.GetRows()), Cols: uint16(t.GetCols())})
		if err != nil {
			return err
		}
		p.tty, p.in = f, f
		readers.Go(func() { p.collect(f, guestv1.OutputStream_OUTPUT_STREAM_STDOUT) })
		return nil
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, _ := p.cmd.StdinPipe() // Fails only if it was set.
	out, _ := p.cmd.StdoutPipe()
	errs, _ := p.cmd.StderrPipe()
	p.in = in
	if err := p.cmd.Start(); err != nil {
		return err
	}
	readers.Go(func() { p.collect(out, guestv1.OutputStream_OUTPUT_STREAM_STDOUT) })
	readers.Go(func() { p.collect(errs, guestv1.OutputStream_OUTPUT_STREAM_STDERR) })
	return nil
}

func (p *process) collect(r io.Reader, stream guestv1.OutputStream) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			p.change(func() {
				p.output = append(p.output, &guestv1.Output{Stream: stream, Data: append([]byte(nil), buf[:n]...), Sequence: p.length})
				p.length += uint64(n)
			})
		}
		if err != nil {
			return
		}
	}
}

func (p *process) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.news)
	p.news = make(chan struct{})
}

// feed gives a stream's requests to the process.
func (p *process) feed(s stream) {
	for {
		m, err := s.Recv()
		if err != nil {
			return
		}
		switch f := m.GetFrame().(type) {
		case *guestv1.ExecStreamRequest_Stdin:
			p.in.Write(f.Stdin)
		case *guestv1.ExecStreamRequest_CloseStdin:
			if p.tty != nil {
				p.in.Write([]byte{4}) // Of a terminal the end is a character.
			} else {
				p.in.Close()
			}
		case *guestv1.ExecStreamRequest_Resize:
			pty.Setsize(p.tty, &pty.Winsize{Rows: uint16(f.Resize.GetRows()), Cols: uint16(f.Resize.GetCols())})
		case *guestv1.ExecStreamRequest_Signal:
			p.signal(map[string]syscall.Signal{"SIGINT": syscall.SIGINT, "SIGTERM": syscall.SIGTERM}[f.Signal])
		}
	}
}

// follow sends the output from an offset on, and what comes, until the end.
func (p *process) follow(s stream, from uint64) error {
	pid := int32(0)
	if p.cmd.Process != nil {
		pid = int32(p.cmd.Process.Pid)
	}
	started := &guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Started{Started: &guestv1.ProcessStarted{ProcessId: p.id, Pid: pid}}}
	if err := s.Send(started); err != nil {
		return err
	}
	next := 0
	for {
		p.mu.Lock()
		output, exited, news := p.output[next:], p.exited, p.news
		p.mu.Unlock()
		next += len(output)
		for _, o := range output {
			end := o.GetSequence() + uint64(len(o.GetData()))
			if end <= from {
				continue
			}
			skip := max(from, o.GetSequence()) - o.GetSequence()
			piece := &guestv1.Output{Stream: o.GetStream(), Data: o.GetData()[skip:], Sequence: o.GetSequence() + skip}
			if err := s.Send(&guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Output{Output: piece}}); err != nil {
				return err
			}
		}
		if exited != nil {
			return s.Send(&guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Exited{Exited: exited}})
		}
		select {
		case <-news:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

// left is called when a stream ends before the process.
func (p *process) left() {
	if !p.spec.GetDetached() {
		p.kill()
	}
}

func (p *process) kill() { p.signal(syscall.SIGKILL) }

func (p *process) signal(sig syscall.Signal) {
	if p.cmd.Process != nil {
		syscall.Kill(-p.cmd.Process.Pid, sig)
	}
}

func (p *process) describe() *guestv1.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := &guestv1.Process{
		ProcessId: p.id, Tag: p.spec.GetTag(), Command: append([]string{p.spec.GetCmd()}, p.spec.GetArgs()...),
		Running: p.exited == nil, Exited: p.exited, Terminal: p.spec.GetTerminal() != nil, User: "user",
	}
	if p.cmd.Process != nil {
		d.Pid = int32(p.cmd.Process.Pid)
	}
	return d
}
