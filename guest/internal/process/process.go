package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/guest/internal/account"
)

// Spec describes a command.
type Spec struct {
	Cmd  string
	Args []string
	// Dir is the working directory; empty means the user's home.
	Dir string
	// Env is added to base, which is added to the login environment.
	Env, Base map[string]string
	// User is a name or number; empty means the default user.
	User string
	// Terminal gives it a terminal of this size.
	Terminal *Size
	// Timeout kills it; 0 means never.
	Timeout time.Duration
	// Detached keeps it running when its client goes; KeepAlive makes it hold the sandbox's inactivity timer.
	Detached, KeepAlive bool
	// Tag is a name for people.
	Tag string
}

// Size is a terminal's size in characters.
type Size struct{ Rows, Cols uint16 }

// Exit says how a process ended.
type Exit struct {
	// Code is the exit code, or 128 plus the signal's number.
	Code int
	// Signal is the name of the signal that ended it, or empty.
	Signal string
	// Err says why it could not be started, or is empty.
	Err string
	// TimedOut: Spec.Timeout ended it.
	TimedOut bool
	// User and System are CPU time; Wall is time from start to exit.
	User, System, Wall time.Duration
	// MaxRSS is the largest resident set, bytes.
	MaxRSS int64
	// OOMKilled: the guest's kernel killed some process for lack of memory meanwhile.
	OOMKilled bool
}

// Process is a command that was started.
type Process struct {
	ID      string
	Spec    Spec
	User    string
	Started time.Time

	cmd   *exec.Cmd
	log   *outputLog
	input inputPipe
	ptmx  *os.File      // the terminal, or nil
	done  chan struct{} // closed once exit is set and all output is in the log
	exit  Exit          // valid once done is closed

	mu    sync.Mutex
	ended bool // the main process is reaped: its pid may be another's; guarded by mu
	why   bool // the timeout killed it; guarded by mu
}

// inputPipe is the process's standard input.
type inputPipe struct {
	mu sync.Mutex
	w  *os.File // nil once closed
}

// graceAfterExit is how long output is still read after the main process has ended, while a child of it holds the pipe.
const graceAfterExit = time.Second

// start starts a command; it fails with a *StartError where the command cannot be run.
func start(id string, s Spec) (*Process, error) {
	u, err := account.Lookup(s.User)
	if err != nil {
		return nil, err
	}
	p := &Process{ID: id, Spec: s, User: u.Name, Started: time.Now(), log: newLog(), done: make(chan struct{})}
	env := environment(u, s)
	dir := s.Dir
	if dir == "" {
		dir = u.Home
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		if s.Dir != "" {
			return nil, &StartError{Code: 126, Reason: fmt.Sprintf("working directory %q: no such directory", s.Dir)}
		}
		dir = "/"
	}
	path, err := lookPath(s.Cmd, dir, env)
	if err != nil {
		return nil, err
	}
	p.cmd = &exec.Cmd{Path: path, Args: append([]string{s.Cmd}, s.Args...), Dir: dir, Env: env}
	groups := make([]uint32, 0, len(u.Groups))
	for _, g := range u.Groups {
		groups = append(groups, uint32(g))
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID), Groups: groups}}
	oom := oomKills()
	readers, after, err := p.wire()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		after()
		p.closeAll(readers)
		return nil, startError(s.Cmd, err)
	}
	after()
	go p.wait(readers, oom)
	return p, nil
}

// wire connects the command's standard files. It returns our reading ends, and what to do once the command has its own.
func (p *Process) wire() (readers []*os.File, after func(), err error) {
	if t := p.Spec.Terminal; t != nil {
		ptmx, tty, err := pty.Open()
		if err != nil {
			return nil, nil, fmt.Errorf("open a terminal: %w", err)
		}
		if err := pty.Setsize(ptmx, &pty.Winsize{Rows: t.Rows, Cols: t.Cols}); err != nil {
			ptmx.Close()
			tty.Close()
			return nil, nil, err
		}
		cred := p.cmd.SysProcAttr.Credential
		os.Chown(tty.Name(), int(cred.Uid), 5)
		p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = tty, tty, tty
		p.cmd.SysProcAttr.Setsid, p.cmd.SysProcAttr.Setctty = true, true
		p.ptmx, p.input.w = ptmx, ptmx
		return []*os.File{ptmx}, func() { tty.Close() }, nil
	}
	p.cmd.SysProcAttr.Setpgid = true
	var theirs []*os.File
	closeTheirs := func() {
		for _, f := range theirs {
			f.Close()
		}
	}
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeTheirs()
			p.closeAll(readers)
			return nil, nil, err
		}
		switch i {
		case 0:
			p.cmd.Stdin, p.input.w = r, w
			theirs = append(theirs, r)
		case 1:
			p.cmd.Stdout = w
		case 2:
			p.cmd.Stderr = w
		}
		if i > 0 {
			readers, theirs = append(readers, r), append(theirs, w)
		}
	}
	return readers, closeTheirs, nil
}

func (p *Process) closeAll(readers []*os.File) {
	for _, r := range readers {
		r.Close()
	}
	p.CloseInput()
}

// wait reads the output, waits for the end, and makes the exit known. It is the one owner of both.
func (p *Process) wait(readers []*os.File, oom uint64) {
	var read sync.WaitGroup
	for i, r := range readers {
		read.Add(1)
		go func() {
			defer read.Done()
			p.copyOutput(r, i == 1)
		}()
	}
	var timer *time.Timer
	if p.Spec.Timeout > 0 {
		timer = time.AfterFunc(p.Spec.Timeout, func() {
			p.mu.Lock()
			p.why = true
			p.mu.Unlock()
			p.Signal(unix.SIGKILL)
		})
	}
	err := p.cmd.Wait()
	wall := time.Since(p.Started)
	p.mu.Lock()
	p.ended = true
	timedOut := p.why
	p.mu.Unlock()
	if timer != nil {
		timer.Stop()
	}
	// Children that outlive it may hold the pipes open: what is there is read, what comes later is not waited for.
	for _, r := range readers {
		r.SetReadDeadline(time.Now().Add(graceAfterExit))
	}
	allRead := make(chan struct{})
	go func() { read.Wait(); close(allRead) }()
	<-allRead
	p.closeAll(readers)
	p.exit = exitOf(p.cmd.ProcessState, err, wall)
	p.exit.TimedOut = timedOut
	p.exit.OOMKilled = oomKills() > oom
	p.log.close()
	close(p.done)
}

func (p *Process) copyOutput(r *os.File, stderr bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			p.log.append(stderr, buf[:n])
		}
		if err != nil {
			return // end of file, EIO of a terminal whose other side is closed, or the deadline after the exit
		}
	}
}

func exitOf(st *os.ProcessState, err error, wall time.Duration) Exit {
	e := Exit{Wall: wall}
	if st == nil {
		e.Code, e.Err = 127, fmt.Sprint(err)
		return e
	}
	ws := st.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		e.Code, e.Signal = 128+int(ws.Signal()), unix.SignalName(ws.Signal())
	} else {
		e.Code = ws.ExitStatus()
	}
	e.User, e.System = st.UserTime(), st.SystemTime()
	if ru, ok := st.SysUsage().(*syscall.Rusage); ok {
		e.MaxRSS = ru.Maxrss << 10
	}
	return e
}

// Signal signals the process group, or the foreground group of its terminal. A process that ended is left alone.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	group := p.cmd.Process.Pid
	if p.ptmx != nil && sig != unix.SIGKILL {
		if fg, err := unix.IoctlGetInt(int(p.ptmx.Fd()), unix.TIOCGPGRP); err == nil && fg > 0 {
			group = fg
		}
	}
	if err := unix.Kill(-group, sig); err != nil && err != unix.ESRCH {
		return err
	}
	return nil
}

// Write writes to its standard input; it waits while the process does not read.
func (p *Process) Write(b []byte) error {
	p.input.mu.Lock()
	w := p.input.w
	p.input.mu.Unlock()
	if w == nil {
		return os.ErrClosed
	}
	_, err := w.Write(b)
	return err
}

// CloseInput ends its standard input; of a terminal, by its end-of-file character.
func (p *Process) CloseInput() {
	p.input.mu.Lock()
	defer p.input.mu.Unlock()
	if p.input.w == nil {
		return
	}
	if p.ptmx != nil {
		p.ptmx.Write([]byte{4})
	} else {
		p.input.w.Close()
	}
	p.input.w = nil
}

// Resize changes its terminal's size.
func (p *Process) Resize(s Size) error {
	if p.ptmx == nil {
		return errors.New("the process has no terminal")
	}
	return pty.Setsize(p.ptmx, &pty.Winsize{Rows: s.Rows, Cols: s.Cols})
}

// PID is the main process's pid in the guest.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and its output is complete.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how it ended; valid once Done is closed.
func (p *Process) Exit() Exit { return p.exit }

// Attached tells whether a client reads its output.
func (p *Process) Attached() bool { return p.log.attached() }

// Running tells whether it has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Follow attaches a client that begins at the output's offset from, and calls output and gap until the process has ended
// and all was delivered. It ends with an error where ctx ends, a callback fails, or another client attaches.
func (p *Process) Follow(ctx context.Context, from uint64, output func(Chunk) error, gap func(from, to uint64) error) error {
	client := p.log.attach(from)
	defer p.log.detach(client)
	for {
		c, gapFrom, isGap, done, err := p.log.read(ctx, client)
		if err != nil || done {
			return err
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
}

// StartError: the command cannot be run. Code is what a shell would answer.
type StartError struct {
	Code   int
	Reason string
}

func (e *StartError) Error() string { return e.Reason }

func startError(cmd string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// The file was found: it is its interpreter that is missing.
		return &StartError{127, fmt.Sprintf("%s: cannot run: its interpreter is missing", cmd)}
	case errors.Is(err, fs.ErrPermission):
		return &StartError{126, fmt.Sprintf("%s: permission denied", cmd)}
	case errors.Is(err, syscall.ENOEXEC):
		return &StartError{126, fmt.Sprintf("%s: not an executable", cmd)}
	}
	return &StartError{126, fmt.Sprintf("%s: %v", cmd, err)}
}

// lookPath finds the program as a shell would, in the PATH of the environment that it will have.
func lookPath(cmd, dir string, env []string) (string, error) {
	if strings.Contains(cmd, "/") {
		path := cmd
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return path, executable(cmd, path)
	}
	var denied error
	for _, d := range filepath.SplitList(getenv(env, "PATH")) {
		if !filepath.IsAbs(d) {
			continue
		}
		path := filepath.Join(d, cmd)
		err := executable(cmd, path)
		if err == nil {
			return path, nil
		}
		var s *StartError
		if errors.As(err, &s) && s.Code == 126 {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &StartError{127, fmt.Sprintf("%s: command not found", cmd)}
}

func executable(cmd, path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return &StartError{127, fmt.Sprintf("%s: no such file", cmd)}
	case st.IsDir():
		return &StartError{126, fmt.Sprintf("%s: is a directory", cmd)}
	case st.Mode()&0o111 == 0:
		return &StartError{126, fmt.Sprintf("%s: permission denied", cmd)}
	}
	return nil
}

func environment(u *account.User, s Spec) []string {
	env := map[string]string{
		"HOME": u.Home, "USER": u.Name, "LOGNAME": u.Name, "SHELL": u.Shell, "LANG": "C.UTF-8",
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}
	if s.Terminal != nil {
		env["TERM"] = "xterm-256color"
	}
	for _, m := range []map[string]string{s.Base, s.Env} {
		for k, v := range m {
			env[k] = v
		}
	}
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	return list
}

func getenv(env []string, name string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// oomKills reads how many processes the guest's kernel has killed for lack of memory.
func oomKills() uint64 {
	b, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return 0
}

