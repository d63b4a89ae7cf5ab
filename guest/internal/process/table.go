package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/guest/internal/account"
)

// ErrNotFound: no process has this id; ended ones are forgotten after a while.
var ErrNotFound = errors.New("no such process")

// How long and how many ended processes are kept for attach and list, and how much their output may take in all, bytes.
const (
	keepEnded      = 10 * time.Minute
	keepEndedMax   = 64
	keepEndedBytes = 8 << 20
)

// Table holds the processes of the guest.
type Table struct {
	accounts account.Database
	null     *os.File
	oom      *oomCounter
	exposure exposure
	running  sync.WaitGroup // the goroutines of all processes

	mu   sync.Mutex
	all  map[string]*Process // guarded by mu
	pipe map[*os.File]bool   // our ends of all output; guarded by mu
	env  map[string]string   // the sandbox's environment; guarded by mu
}

// NewTable makes an empty table.
func NewTable(accounts account.Database) (*Table, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return &Table{accounts: accounts, null: null, oom: newOOMCounter(), all: map[string]*Process{}, pipe: map[*os.File]bool{}}, nil
}

// Close kills every process that runs and waits for all that the table started to carry their output.
func (t *Table) Close() {
	t.mu.Lock()
	for _, p := range t.all {
		p.Kill()
	}
	for r := range t.pipe {
		r.Close()
	}
	t.mu.Unlock()
	t.running.Wait()
	t.null.Close()
	t.oom.close()
}

// SetEnv replaces the environment of every command started from now on.
func (t *Table) SetEnv(env map[string]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.env = env
}

// Start starts a command whose output a client can follow. It fails with a *FieldError, account.ErrUnknown or, where the
// command cannot be run, a *StartError.
func (t *Table) Start(s Spec) (*Process, error) {
	return t.start(s, &outputLog{}, true, nil)
}

// Result is what a command left that ran to completion.
type Result struct {
	Exit
	// Stdout and Stderr are the first CaptureBytes of its output; the flags tell whether there was more.
	Stdout, Stderr                   []byte
	StdoutTruncated, StderrTruncated bool
}

// Run runs a command to completion. Where ctx ends first, it returns its cause and the process, which still runs: the caller
// decides what becomes of it. Else it fails like Start.
func (t *Table) Run(ctx context.Context, s Spec, stdin []byte) (*Result, *Process, error) {
	c := &capture{}
	p, err := t.start(s, c, false, stdin)
	if err != nil {
		return nil, nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, p, context.Cause(ctx)
	}
	t.mu.Lock()
	delete(t.all, p.ID)
	t.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	return &Result{Exit: p.exit, Stdout: c.data[0], Stderr: c.data[1], StdoutTruncated: c.truncated[0], StderrTruncated: c.truncated[1]}, p, nil
}

func (t *Table) start(s Spec, out output, interactive bool, stdin []byte) (*Process, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	u, err := t.accounts.Lookup(s.User)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	env, path := environment(u, &s, t.env)
	t.mu.Unlock()
	dir, err := s.directory(u)
	if err != nil {
		return nil, err
	}
	file, err := lookPath(s.Cmd, dir, path)
	if err != nil {
		return nil, err
	}
	var w *wiring
	if s.Terminal != nil {
		w, err = wireTerminal(*s.Terminal, u.UID)
	} else {
		w, stdin, err = wirePipes(t.null, interactive, stdin)
	}
	if err != nil {
		return nil, err
	}
	p := &Process{ID: newID(), Spec: s, User: u.Name, Started: time.Now(), output: out, terminal: w.terminal, input: w.input,
		detached: s.Detached, over: make(chan struct{}), done: make(chan struct{})}
	oomBefore := t.oom.read()
	t.exposure.begin()
	p.proc, err = os.StartProcess(file, append([]string{s.Cmd}, s.Args...), &os.ProcAttr{Dir: dir, Env: env, Files: w.theirs, Sys: attributes(u, s.Terminal != nil)})
	t.exposure.end()
	w.closeTheirs(t.null)
	if err != nil {
		w.closeOurs()
		return nil, startError(s.Cmd, err)
	}
	t.add(p, w)
	t.running.Go(func() {
		p.follow(w, t.oom, oomBefore)
		t.forgetPipes(w)
	})
	if len(stdin) > 0 {
		t.running.Go(func() {
			_ = p.Write(stdin) // a command need not read its input
			p.CloseInput()
		})
	}
	return p, nil
}

// attributes makes the child the leader of a session, and the user.
func attributes(u *account.User, terminal bool) *syscall.SysProcAttr {
	groups := make([]uint32, len(u.Groups))
	for i, g := range u.Groups {
		groups[i] = uint32(g)
	}
	return &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID), Groups: groups},
		Setsid:     true, Setctty: terminal,
	}
}

func (t *Table) add(p *Process, w *wiring) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget()
	t.all[p.ID] = p
	for _, r := range w.readers {
		t.pipe[r] = true
	}
}

func (t *Table) forgetPipes(w *wiring) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range w.readers {
		delete(t.pipe, r)
	}
}

// forget drops ended processes that are old or too many. t.mu is held.
func (t *Table) forget() {
	var ended []*Process
	for id, p := range t.all {
		switch {
		case p.Running():
		case time.Since(p.Started.Add(p.exit.Wall)) > keepEnded:
			delete(t.all, id)
		default:
			ended = append(ended, p)
		}
	}
	slices.SortFunc(ended, func(a, b *Process) int { return b.Started.Compare(a.Started) })
	held := 0
	for i, p := range ended {
		if l, ok := p.output.(*outputLog); ok {
			held += l.size()
		}
		if i >= keepEndedMax || held > keepEndedBytes {
			delete(t.all, p.ID)
		}
	}
}

// Get finds a process.
func (t *Table) Get(id string) (*Process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.all[id]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrNotFound, id)
}

// List returns the processes, running first, then by start.
func (t *Table) List() []*Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget()
	list := make([]*Process, 0, len(t.all))
	for _, p := range t.all {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *Process) int {
		if ra, rb := a.Running(), b.Running(); ra != rb {
			if ra {
				return -1
			}
			return 1
		}
		return a.Started.Compare(b.Started)
	})
	return list
}

// KeepAlive counts the running detached processes that hold the sandbox's inactivity timer.
func (t *Table) KeepAlive() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, p := range t.all {
		if p.Spec.KeepAlive && p.Detached() && p.Running() {
			n++
		}
	}
	return n
}

// ParseSignal reads a signal's name or number; empty means SIGKILL.
func ParseSignal(s string) (syscall.Signal, error) {
	if s == "" {
		return unix.SIGKILL, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	return 0, &FieldError{"signal", "must be a signal's name like SIGTERM or a number from 1 to 64, got " + strconv.Quote(s)}
}
