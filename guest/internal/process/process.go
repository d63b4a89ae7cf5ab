package process

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a command that was started.
type Process struct {
	ID      string
	Spec    Spec
	User    string
	Started time.Time

	proc     *os.Process
	output   output
	terminal *os.File      // ours, or nil
	over     chan struct{} // closed once the main process has exited
	done     chan struct{} // closed once exit is set and all output is taken
	exit     Exit          // valid once done is closed

	mu       sync.Mutex
	input    *os.File // where its standard input is written to; nil once closed; guarded by mu
	reaped   bool     // its pid may be another's; guarded by mu
	timedOut bool     // the timeout killed it; guarded by mu
	detached bool     // it keeps running when its client goes; guarded by mu
}

// output takes what a process writes.
type output interface {
	write(stderr bool, data []byte)
	close()
}

// Exit says how a process ended.
type Exit struct {
	// Code is the exit code, or 128 plus the signal's number.
	Code int
	// Signal is the name of the signal that ended it, or empty.
	Signal string
	// TimedOut: Spec.Timeout ended it.
	TimedOut bool
	// User and System are the CPU time of it and the children it waited for; Wall is time from start to exit.
	User, System, Wall time.Duration
	// MaxRSS is the largest resident set of any of them, bytes; as Linux counts, never less than guestd's own at the start.
	MaxRSS int64
	// OOMKilled: the guest's kernel killed some process for lack of memory meanwhile.
	OOMKilled bool
}

// grace is how long output is read after the main process has exited, while something else holds the pipe open.
const grace = 200 * time.Millisecond

// follow reads the output, waits for the end, and makes the exit known. It is the one owner of all three.
func (p *Process) follow(w *wiring, oom *oomCounter, oomBefore uint64) {
	var reading, complete sync.WaitGroup
	defer reading.Wait()
	for i, r := range w.readers {
		complete.Add(1)
		reading.Go(func() { p.read(r, i == 1, complete.Done) })
	}
	var timer *time.Timer
	if p.Spec.Timeout > 0 {
		timer = time.AfterFunc(p.Spec.Timeout, func() {
			p.mu.Lock()
			p.timedOut = !p.reaped
			p.mu.Unlock()
			p.Signal(unix.SIGKILL)
		})
	}
	st, err := p.reap()
	if timer != nil {
		timer.Stop()
	}
	p.exit = exitOf(st, err)
	p.exit.Wall = time.Since(p.Started)
	close(p.over)
	for _, r := range w.readers {
		r.SetReadDeadline(time.Now().Add(grace))
	}
	complete.Wait()
	p.closeInput()
	p.mu.Lock()
	p.exit.TimedOut = p.timedOut
	p.mu.Unlock()
	p.exit.OOMKilled = oom.read() > oomBefore
	p.output.close()
	close(p.done)
}

// reap waits for the main process. From the moment that its pid may belong to another it is not signalled any more, so
// it is first waited for without being reaped.
func (p *Process) reap() (*os.ProcessState, error) {
	for {
		err := unix.Waitid(unix.P_PID, p.proc.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaped = true
	return p.proc.Wait()
}

// Read buffers grow from the small one, which most commands never fill.
const smallRead, largeRead = 4 << 10, 64 << 10

// read takes one stream of output until its end, or until the grace is over; complete is called then. After that it
// drops what others write to a pipe, until Table.Close closes it. A terminal is closed, which hangs up whoever is still on it.
func (p *Process) read(r *os.File, stderr bool, complete func()) {
	defer r.Close()
	buf := make([]byte, smallRead)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			p.output.write(stderr, buf[:n])
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if errors.Is(err, syscall.EIO) && p.terminal != nil && p.closedTerminal() {
			continue
		}
		if err != nil {
			complete()
			return
		}
		if n == len(buf) && n < largeRead {
			buf = make([]byte, min(4*n, largeRead))
		}
	}
	// The deadline may have passed while a slow client held us back: what the main process wrote is still in the pipe.
	r.SetReadDeadline(time.Time{})
	p.drain(r, stderr, buf)
	complete()
	if p.terminal != nil {
		return
	}
	for {
		if _, err := r.Read(buf); err != nil {
			return
		}
	}
}

// reopens is how often it is looked whether a terminal that nobody has open is used again.
const reopens = 20 * time.Millisecond

// closedTerminal waits while nobody has the terminal open but the main process still runs, which may be about to exit, or may
// open it again. To close our end now would hang up on it. It tells whether to read again.
func (p *Process) closedTerminal() bool {
	select {
	case <-p.over:
		return false
	case <-time.After(reopens):
		return true
	}
}

// drain takes what a pipe holds now, without waiting.
func (p *Process) drain(r *os.File, stderr bool, buf []byte) {
	for taken := 0; taken < logBytes; {
		n := 0
		err := control(r, func(fd int) (err error) { n, err = unix.Read(fd, buf); return err })
		if err != nil || n <= 0 {
			return
		}
		p.output.write(stderr, buf[:n])
		taken += n
	}
}

func exitOf(st *os.ProcessState, err error) Exit {
	if st == nil {
		return Exit{Code: 255, Signal: err.Error()} // the kernel always has an answer for a child of ours
	}
	e := Exit{User: st.UserTime(), System: st.SystemTime()}
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Code, e.Signal = 128+int(ws.Signal()), unix.SignalName(ws.Signal())
	} else {
		e.Code = st.ExitCode()
	}
	if ru, ok := st.SysUsage().(*syscall.Rusage); ok {
		e.MaxRSS = ru.Maxrss << 10
	}
	return e
}

// Signal signals the process group, or the foreground group of its terminal. A process that ended is left alone.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return nil
	}
	group := p.proc.Pid
	if p.terminal != nil && sig != unix.SIGKILL {
		// Without a foreground group, the process itself.
		_ = control(p.terminal, func(fd int) error {
			fg, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
			if err == nil && fg > 0 {
				group = fg
			}
			return err
		})
	}
	if err := unix.Kill(-group, sig); err != nil && err != unix.ESRCH {
		return err
	}
	return nil
}

// Kill ends the process and its group.
func (p *Process) Kill() { _ = p.Signal(unix.SIGKILL) }

// Write writes to its standard input; it waits while the process does not read.
func (p *Process) Write(b []byte) error {
	p.mu.Lock()
	w := p.input
	p.mu.Unlock()
	if w == nil {
		return os.ErrClosed
	}
	_, err := w.Write(b)
	return err
}

// endOfFile is what a terminal takes for the end of its input.
var endOfFile = []byte{4}

// CloseInput ends its standard input; of a terminal, by its end-of-file character.
func (p *Process) CloseInput() {
	p.mu.Lock()
	w := p.input
	p.input = nil
	p.mu.Unlock()
	switch {
	case w == nil:
	case p.terminal != nil:
		_, _ = w.Write(endOfFile)
	default:
		w.Close()
	}
}

// closeInput lets go of the input of a process that has ended; a terminal's is closed by its reader.
func (p *Process) closeInput() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.input != nil && p.terminal == nil {
		p.input.Close()
	}
	p.input = nil
}

// ErrNoTerminal: the process has no terminal to resize.
var ErrNoTerminal = errors.New("the process has no terminal")

// Resize changes its terminal's size.
func (p *Process) Resize(s Size) error {
	if p.terminal == nil {
		return ErrNoTerminal
	}
	err := control(p.terminal, func(fd int) error { return setSize(fd, s) })
	if errors.Is(err, os.ErrClosed) {
		return nil // it has ended meanwhile
	}
	return err
}

// PID is the main process's pid in the guest.
func (p *Process) PID() int { return p.proc.Pid }

// Done is closed when the process has ended and its output is complete.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how it ended; valid once Done is closed.
func (p *Process) Exit() Exit { return p.exit }

// Running tells whether it has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Detach keeps it running from now on when its client goes.
func (p *Process) Detach() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.detached = true
}

// Detached tells whether it keeps running when its client goes.
func (p *Process) Detached() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.detached
}

// Attached tells whether a client reads its output.
func (p *Process) Attached() bool {
	l, ok := p.output.(*outputLog)
	return ok && l.attached()
}

// ErrNotAttachable: the command runs to completion for one caller, who alone gets its output.
var ErrNotAttachable = errors.New("a command that was started to run to completion cannot be attached to")

// Follow attaches a client that begins at the output's offset from, and calls output and gap until the process has ended
// and all was delivered. It ends with an error where ctx ends, a callback fails, or another client attaches.
func (p *Process) Follow(ctx context.Context, from uint64, output func(Chunk) error, gap func(from, to uint64) error) error {
	log, ok := p.output.(*outputLog)
	if !ok {
		return ErrNotAttachable
	}
	client := log.attach(from)
	defer log.detach(client)
	for {
		c, gapFrom, isGap, done, err := log.read(ctx, client)
		if err != nil {
			return err
		}
		if done {
			break
		}
		if isGap {
			if err := gap(gapFrom, c.Sequence); err != nil {
				return err
			}
		}
		if err := output(c); err != nil {
			return err
		}
	}
	<-p.done // the log closes a moment before
	return nil
}
