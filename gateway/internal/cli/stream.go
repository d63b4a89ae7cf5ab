package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// session is one process in a sandbox whose input and output are here.
type session struct {
	a      *app
	st     guestv1.ProcessService_ExecStreamClient
	cancel context.CancelFunc

	mu sync.Mutex // one sender at a time
}

// open makes the call with its first frame.
func (a *app) open(ctx context.Context, first *guestv1.ExecStreamRequest) (*session, error) {
	ctx, cancel := context.WithCancel(ctx)
	st, err := a.c.processes.ExecStream(ctx)
	if err == nil {
		err = send(st, first)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &session{a: a, st: st, cancel: cancel}, nil
}

// send leaves io.EOF to who receives: then the call has ended, and its status comes there.
func send(st guestv1.ProcessService_ExecStreamClient, m *guestv1.ExecStreamRequest) error {
	if err := st.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (s *session) send(m *guestv1.ExecStreamRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st.Send(m)
}

// attend starts a process and stays with it until it ends. Interrupts go to the process.
func (a *app) attend(ctx context.Context, id string, start *guestv1.ProcessStart, f *execFlags, interrupts <-chan os.Signal) error {
	if f.terminal {
		restore, err := a.takeTerminal(start)
		if err != nil {
			return err
		}
		defer restore()
	}
	s, err := a.open(ctx, &guestv1.ExecStreamRequest{SandboxId: id, Frame: &guestv1.ExecStreamRequest_Start{Start: start}})
	if err != nil {
		return err
	}
	over := make(chan struct{})
	var others sync.WaitGroup
	defer func() {
		close(over)
		s.cancel()
		others.Wait()
	}()
	others.Go(func() { s.signals(interrupts, over) })
	if f.terminal {
		others.Go(func() { s.resizes(over) })
	}
	if f.noStdin {
		err = s.closeStdin()
	} else {
		// Nobody waits for this one: a read of a terminal cannot be ended. It ends with the process, or at the next byte.
		go s.copyIn(f.terminal && a.typed())
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return s.copyOut()
}

func (s *session) closeStdin() error {
	return s.send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_CloseStdin{CloseStdin: &guestv1.CloseStdin{}}})
}

// typed tells whether input comes from a terminal here.
func (a *app) typed() bool {
	f, ok := a.in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// copyIn passes standard input on. The end of what is typed is not told: there it is a character, and else the terminal has gone.
func (s *session) copyIn(typed bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.a.in.Read(buf)
		if n > 0 && s.send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: buf[:n]}}) != nil {
			return // The call has ended, and copyOut has its status.
		}
		if err != nil {
			if !typed {
				_ = s.closeStdin() // As above.
			}
			return
		}
	}
}

// copyOut writes output until the process ends, and returns its exit code as an exitError.
func (s *session) copyOut() error {
	for {
		m, err := s.st.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the stream ended before the command did; `covey ps` shows whether it still runs")
		}
		if err != nil {
			return err
		}
		switch f := m.GetFrame().(type) {
		case *guestv1.ExecStreamResponse_Output:
			w := s.a.out
			if f.Output.GetStream() == guestv1.OutputStream_OUTPUT_STREAM_STDERR {
				w = s.a.err
			}
			if _, err := w.Write(f.Output.GetData()); err != nil {
				return err
			}
		case *guestv1.ExecStreamResponse_Gap:
			fmt.Fprintf(s.a.err, "covey: %d bytes of output are no longer held\n", f.Gap.GetToSequence()-f.Gap.GetFromSequence())
		case *guestv1.ExecStreamResponse_Exited:
			return s.ended(f.Exited)
		}
	}
}

func (s *session) ended(e *guestv1.ProcessExited) error {
	switch {
	case e.GetError() != "":
		fmt.Fprintln(s.a.err, "covey:", e.GetError())
	case e.GetTimedOut():
		fmt.Fprintln(s.a.err, "covey: the command was killed, as its time was over")
	case e.GetUsage().GetOomKilled():
		fmt.Fprintln(s.a.err, "covey: the sandbox ran out of memory; --memory gives it more")
	}
	if e.GetExitCode() == 0 {
		return nil
	}
	return exitError(e.GetExitCode())
}

// signals passes interrupts on. The third one ends the call, for a command that does not listen.
func (s *session) signals(interrupts <-chan os.Signal, over <-chan struct{}) {
	for n := 1; ; n++ {
		select {
		case sig := <-interrupts:
			if n > 2 {
				s.cancel()
				return
			}
			// An error means that the call has ended.
			_ = s.send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Signal{Signal: signalNames[sig]}})
		case <-over:
			return
		}
	}
}

// takeTerminal sets the process's terminal to the size of the one here, and makes that raw: what is typed goes to the sandbox as it is.
func (a *app) takeTerminal(start *guestv1.ProcessStart) (restore func(), err error) {
	start.Terminal = &guestv1.TerminalSize{Rows: 24, Cols: 80}
	if t := os.Getenv("TERM"); t != "" {
		if start.Env == nil {
			start.Env = map[string]string{}
		}
		if start.Env["TERM"] == "" {
			start.Env["TERM"] = t
		}
	}
	if !a.typed() {
		return func() {}, nil
	}
	f := a.in.(*os.File)
	if cols, rows, err := term.GetSize(int(f.Fd())); err == nil && rows > 0 && cols > 0 {
		start.Terminal = &guestv1.TerminalSize{Rows: uint32(rows), Cols: uint32(cols)}
	}
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() { _ = term.Restore(int(f.Fd()), old) }, nil // Where it fails the terminal is gone.
}

// resizes follows the size of the terminal here.
func (s *session) resizes(over <-chan struct{}) {
	f, ok := s.a.in.(*os.File)
	if !ok {
		return
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	for {
		select {
		case <-changed:
			if cols, rows, err := term.GetSize(int(f.Fd())); err == nil {
				_ = s.send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Resize{Resize: &guestv1.TerminalSize{Rows: uint32(rows), Cols: uint32(cols)}}})
			}
		case <-over:
			return
		}
	}
}
