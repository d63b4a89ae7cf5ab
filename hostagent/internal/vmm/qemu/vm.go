package qemu

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/launch"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu/qmp"
)

// VM is one QEMU process. It implements vmm.VM.
type VM struct {
	driver  *Driver
	cfg     vmm.Config
	cpu     vmm.CPU
	proc    *launch.Process
	control string
	client  *qmp.Client
	// consoleStart is where in the console this VM began.
	consoleStart int64
	// busy is held by the one operation that may be under way.
	busy chan struct{}
	// saved is QEMU's state since it was saved, until the VM goes on; whoever holds busy may use it.
	saved []byte
	// migration gets the states of migrations, of which the last counts.
	migration chan string

	mu       sync.Mutex // guards shutdown
	shutdown string     // why QEMU said that it ends, "" if it did not

	watcher  sync.WaitGroup
	exit     vmm.Exit      // written before done is closed
	done     chan struct{} // closed by the watcher when QEMU has ended
	detached chan struct{} // closed by detach
	once     sync.Once
}

// connect makes a VM of a process.
func (d *Driver) connect(ctx context.Context, cfg vmm.Config, cpu vmm.CPU, proc *launch.Process, control string, consoleStart int64) (*VM, error) {
	v := &VM{
		driver: d, cfg: cfg, cpu: cpu, proc: proc, control: control, consoleStart: consoleStart, busy: make(chan struct{}, 1),
		migration: make(chan string, 64), done: make(chan struct{}), detached: make(chan struct{}),
	}
	ctx, cancel := context.WithTimeout(ctx, d.conf.Timeout)
	defer cancel()
	client, err := dial(ctx, control, proc, v.event)
	if err != nil {
		return nil, v.explain(ctx, err)
	}
	v.client = client
	d.mu.Lock()
	d.vms[v] = struct{}{}
	d.mu.Unlock()
	v.watcher.Go(v.watch)
	return v, nil
}

// dial connects to QEMU's QMP, and gives up as soon as QEMU has ended.
func dial(ctx context.Context, control string, proc *launch.Process, events func(qmp.Event)) (*qmp.Client, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case <-proc.Done():
			cancel(vmm.ErrGone)
		case <-over:
		}
	})
	defer waiting.Wait()
	defer close(over)
	return qmp.Dial(ctx, control, events)
}

// watch waits for QEMU's end.
func (v *VM) watch() {
	select {
	case <-v.proc.Done():
	case <-v.detached:
		return
	}
	// What QEMU said before its end is still to be read; the end of the connection follows it.
	<-v.client.Done()
	v.exit = v.proc.Exit()
	v.exit.Reason = v.reason(v.exit)
	v.driver.forget(v)
	v.driver.conf.Log.Info("VMM ended", "sandbox", v.cfg.ID, "pid", v.proc.PID(), "reason", v.exit.Reason)
	close(v.done)
	v.proc.Close()
}

func (d *Driver) forget(v *VM) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.vms, v)
}

// detach lets go of the VM, which lives on.
func (v *VM) detach() {
	v.once.Do(func() { close(v.detached) })
	v.client.Close()
	v.watcher.Wait()
	v.proc.Close()
	v.driver.forget(v)
}

// discard kills a VM that nobody has seen yet.
func (v *VM) discard() {
	kill(v.proc)
	v.detach()
}

// kill kills a process and waits for its end for a while: what does not end on SIGKILL waits for the kernel.
func kill(proc *launch.Process) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	proc.Kill(ctx)
}

// event takes what QEMU says unasked. It is called by the client's reader.
func (v *VM) event(e qmp.Event) {
	switch e.Name {
	case "MIGRATION":
		var data struct{ Status string }
		if json.Unmarshal(e.Data, &data) != nil {
			return
		}
		select {
		case v.migration <- data.Status:
		default: // nobody migrates: QEMU says more than it should
		}
	case "SHUTDOWN":
		var data struct{ Reason string }
		if json.Unmarshal(e.Data, &data) == nil {
			v.mu.Lock()
			v.shutdown = data.Reason
			v.mu.Unlock()
		}
	}
}

// Handle implements vmm.VM.
func (v *VM) Handle() vmm.Handle {
	return vmm.Handle{Driver: Name, PID: v.proc.PID(), StartTime: v.proc.StartTime(), Control: v.control}
}

// CPU implements vmm.VM.
func (v *VM) CPU() vmm.CPU { return v.cpu }

// Done implements vmm.VM.
func (v *VM) Done() <-chan struct{} { return v.done }

// Exit implements vmm.VM.
func (v *VM) Exit() vmm.Exit {
	select {
	case <-v.done:
		return v.exit
	default:
		return vmm.Exit{}
	}
}

// Kill implements vmm.VM.
func (v *VM) Kill(ctx context.Context) error {
	if err := v.proc.Kill(ctx); err != nil {
		return err
	}
	select {
	case <-v.done:
		return nil
	case <-v.detached:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Stop implements vmm.VM.
func (v *VM) Stop(ctx context.Context) error {
	return v.alone(ctx, func() error { return v.do(ctx, "stop", nil, nil) })
}

// Cont implements vmm.VM.
func (v *VM) Cont(ctx context.Context) error {
	return v.alone(ctx, func() error {
		v.saved = nil // whatever comes of it
		return v.do(ctx, "cont", nil, nil)
	})
}

// PrivateBytes implements vmm.VM.
func (v *VM) PrivateBytes() (int64, error) {
	if v.Exit().Time.IsZero() {
		n, err := v.privateBytes()
		if err == nil || v.Exit().Time.IsZero() {
			return n, err
		}
	}
	return 0, v.gone()
}
