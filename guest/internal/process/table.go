package process

import (
	"crypto/rand"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotFound: no process has this id; ended ones are forgotten after a while.
var ErrNotFound = errors.New("no such process")

// How long and how many ended processes are kept for attach and list.
const (
	keepEnded    = 10 * time.Minute
	keepEndedMax = 64
)

// Table holds the processes of the guest.
type Table struct {
	mu   sync.Mutex
	all  map[string]*Process // guarded by mu
	base map[string]string   // the sandbox's environment; guarded by mu
}

// NewTable makes an empty table.
func NewTable() *Table { return &Table{all: map[string]*Process{}} }

// SetEnv replaces the environment of every command started from now on.
func (t *Table) SetEnv(env map[string]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.base = env
}

// Start starts a command.
func (t *Table) Start(s Spec) (*Process, error) {
	t.mu.Lock()
	s.Base = t.base
	t.mu.Unlock()
	p, err := start("proc_"+strings.ToUpper(rand.Text()), s)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget()
	t.all[p.ID] = p
	return p, nil
}

// forget drops ended processes that are old or too many. t.mu is held.
func (t *Table) forget() {
	var ended []*Process
	for id, p := range t.all {
		if p.Running() {
			continue
		}
		if time.Since(p.Started.Add(p.exit.Wall)) > keepEnded {
			delete(t.all, id)
			continue
		}
		ended = append(ended, p)
	}
	slices.SortFunc(ended, func(a, b *Process) int { return b.Started.Compare(a.Started) })
	for _, p := range ended[min(len(ended), keepEndedMax):] {
		delete(t.all, p.ID)
	}
}

// Remove forgets a process that has ended.
func (t *Table) Remove(p *Process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, p.ID)
}

// Get finds a process.
func (t *Table) Get(id string) (*Process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.all[id]; ok {
		return p, nil
	}
	return nil, ErrNotFound
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
	return 0, errors.New("must be a signal's name like SIGTERM or a number from 1 to 64, got " + strconv.Quote(s))
}
