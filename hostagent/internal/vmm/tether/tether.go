package tether

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/launch"
)

// patience is how long a process may take to end on SIGKILL, before whoever discards it goes on.
const patience = 20 * time.Second

// Conn is a connection to a VMM.
type Conn interface {
	// Done is closed when the connection has ended.
	Done() <-chan struct{}
	Close() error
}

// Config is what a driver says of a VM.
type Config struct {
	// ID is the sandbox's id, for the log.
	ID string
	// Timeout bounds each answer.
	Timeout time.Duration
	// Protocol tells the errors of the connection apart.
	Protocol Protocol
	// Reason completes an end with what the driver knows of it.
	Reason func(vmm.Exit) vmm.Exit
	// Ended frees what the driver holds for a process that has ended, LetGo what it holds for one that lives on. One of them is called,
	// once, after the connection has ended. Nil: there is nothing to free.
	Ended func() error
	LetGo func()
	Log   *slog.Logger
}

// Tether is the hold on one process. It is safe for concurrent use.
type Tether struct {
	conf  Config
	proc  *launch.Process
	fleet *Fleet
	conn  Conn // nil before Watch
	// busy is held by the one operation that may be under way.
	busy chan struct{}

	watchers sync.WaitGroup
	exit     vmm.Exit      // written before done is closed
	done     chan struct{} // closed by end
	loose    chan struct{} // closed by LetGo
	letting  sync.Once
}

// New makes the tether of a process, which is the tether's from now on.
func New(fleet *Fleet, proc *launch.Process, conf Config) *Tether {
	return &Tether{conf: conf, proc: proc, fleet: fleet, busy: make(chan struct{}, 1), done: make(chan struct{}), loose: make(chan struct{})}
}

// Reopen opens the process of a VM that a driver had started, by what a former agent has noted of it.
func Reopen(driver string, h vmm.Handle) (*launch.Process, error) {
	if h.Driver != driver {
		return nil, fmt.Errorf("the VM belongs to the driver %q, not %q", h.Driver, driver)
	}
	return launch.Reopen(h.PID, h.StartTime)
}

// Process is the process that is held.
func (t *Tether) Process() *launch.Process { return t.proc }

// Handle is what a later agent needs to reopen the VM.
func (t *Tether) Handle(driver, control string) vmm.Handle {
	return vmm.Handle{Driver: driver, PID: t.proc.PID(), StartTime: t.proc.StartTime(), Control: control}
}

// Watch has the process's end noticed.
func (t *Tether) Watch(conn Conn) {
	t.conn = conn
	t.fleet.add(t)
	t.watchers.Go(func() {
		select {
		case <-t.proc.Done():
			t.end()
		case <-t.loose:
		}
	})
}

// Go runs f beside the watching. It must return when the process has ended or Loose is closed.
func (t *Tether) Go(f func()) { t.watchers.Go(f) }

// Loose is closed when the process is let go.
func (t *Tether) Loose() <-chan struct{} { return t.loose }

// end frees all that was held for a process that has ended.
func (t *Tether) end() {
	if t.conn != nil {
		// What the VMM said before its end is still to be read; the end of the connection follows it.
		<-t.conn.Done()
	}
	var err error
	if t.conf.Ended != nil {
		err = t.conf.Ended()
	}
	t.exit = t.conf.Reason(t.proc.Exit())
	t.fleet.remove(t)
	t.conf.Log.Info("VMM ended", "sandbox", t.conf.ID, "pid", t.proc.PID(), "reason", t.exit.Reason)
	if err != nil {
		t.conf.Log.Error("what a VM held could not be freed", "sandbox", t.conf.ID, "error", err)
	}
	close(t.done)
	t.proc.Close()
}

// LetGo ends the hold and leaves the process as it is. It returns when nothing is held any more.
func (t *Tether) LetGo() {
	t.letting.Do(func() {
		close(t.loose)
		if t.conn != nil {
			t.conn.Close()
		}
		t.watchers.Wait()
		select {
		case <-t.done:
			return // its end was seen just before
		default:
		}
		t.fleet.remove(t)
		if t.conf.LetGo != nil {
			t.conf.LetGo()
		}
		t.proc.Close()
	})
}

// Discard ends a process that nobody has seen yet, watched or not, and waits for its end for a while: what does not end on SIGKILL waits for
// the kernel, and is let go.
func (t *Tether) Discard() {
	if t.isDone() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := t.proc.Kill(ctx)
	switch {
	case err != nil:
		t.LetGo()
	case t.conn == nil:
		t.end()
	default:
		t.watchers.Wait()
	}
}

// Kill ends the process and returns when it is gone, or let go.
func (t *Tether) Kill(ctx context.Context) error {
	if t.isDone() {
		return nil
	}
	if err := t.proc.Kill(ctx); err != nil {
		return err
	}
	select {
	case <-t.done:
		return nil
	case <-t.loose:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Done is closed when the process has ended and all that belonged to it is free.
func (t *Tether) Done() <-chan struct{} { return t.done }

func (t *Tether) isDone() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// Exit says how it ended; the zero Exit before Done.
func (t *Tether) Exit() vmm.Exit {
	if t.isDone() {
		return t.exit
	}
	return vmm.Exit{}
}

// Fleet is the tethers that a driver watches. The zero Fleet has none.
type Fleet struct {
	mu   sync.Mutex // guards held
	held map[*Tether]struct{}
}

func (f *Fleet) add(t *Tether) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil {
		f.held = map[*Tether]struct{}{}
	}
	f.held[t] = struct{}{}
}

func (f *Fleet) remove(t *Tether) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.held, t)
}

// Close lets go of all.
func (f *Fleet) Close() {
	f.mu.Lock()
	list := make([]*Tether, 0, len(f.held))
	for t := range f.held {
		list = append(list, t)
	}
	f.mu.Unlock()
	for _, t := range list {
		t.LetGo()
	}
}
