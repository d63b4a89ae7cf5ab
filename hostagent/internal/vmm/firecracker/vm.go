package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
	"github.com/coveyhq/covey/hostagent/internal/vmm/launch"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
)

// past is a deadline that ends every read.
var past = time.Unix(1, 0)

// VM is one Firecracker process. It implements vmm.VM.
type VM struct {
	// Tether is nil before the process has been started.
	*tether.Tether
	driver  *Driver
	cfg     vmm.Config
	cpu     vmm.CPU
	client  *api.Client
	disk    Disk // nil: there is none
	console *console
	words   words
	metrics *meter
	pipes   []*os.File
	pumps   sync.WaitGroup
	// saved: the state file and the spool are of the VM as it stands now; it belongs to the operation that is Alone.
	saved bool

	mu      sync.Mutex      // guards what follows
	proc    *launch.Process // the tether's
	verdict string          // why the driver itself ended the VMM, "" if it did not
}

var _ vmm.VM = (*VM)(nil)

func (d *Driver) newVM(cfg vmm.Config, cpu vmm.CPU) *VM {
	return &VM{driver: d, cfg: cfg, cpu: cpu, metrics: newMeter()}
}

// hold takes a process that was started or reopened.
func (v *VM) hold(proc *launch.Process) {
	v.Tether = tether.New(&v.driver.fleet, proc, tether.Config{
		ID: v.cfg.ID, Timeout: v.driver.conf.Timeout, Protocol: protocol, Reason: v.reason, Ended: v.free, LetGo: v.leave, Log: v.driver.conf.Log,
	})
	v.mu.Lock()
	v.proc = proc
	v.mu.Unlock()
}

// connect connects to the process, and begins to watch it.
func (v *VM) connect(ctx context.Context) error {
	return v.Ask(ctx, func(ctx context.Context) (err error) {
		if v.client, err = v.dial(ctx); err != nil {
			return err
		}
		v.Watch(v.client)
		v.Go(v.guard)
		return nil
	})
}

// dial connects as soon as Firecracker listens, which nothing announces. The kernel tells who listens: the VMM can put anything in the
// socket's place.
func (v *VM) dial(ctx context.Context) (*api.Client, error) {
	const look = time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		client, err := api.Dial(ctx, v.control(), v.driver.conf.Trace)
		if err == nil {
			if pid := client.PeerPID(); pid != v.Process().PID() {
				client.Close()
				return nil, fmt.Errorf("process %d serves the API, want %d", pid, v.Process().PID())
			}
			return client, nil
		}
		select {
		case <-v.Process().Done():
			return nil, api.ErrClosed
		case <-ctx.Done():
			return nil, fmt.Errorf("connect: %w: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

func (v *VM) control() string { return filepath.Join(ownDir(&v.cfg), apiName) }

// free frees what is held for a process that has ended, or that was never started.
func (v *VM) free() error {
	err := v.closePipes()
	if v.disk != nil {
		ctx, cancel := context.WithTimeout(context.Background(), v.driver.conf.Timeout)
		defer cancel()
		err = errors.Join(err, v.disk.Detach(ctx))
	}
	return err
}

// leave frees what is held for a process that lives on.
func (v *VM) leave() {
	v.closePipes()
	if v.disk != nil {
		v.disk.Close()
	}
}

// guard ends a VMM that cannot be controlled.
func (v *VM) guard() {
	hang := v.driver.conf.HangTime
	tick := time.NewTicker(hang / 4)
	defer tick.Stop()
	for {
		select {
		case <-v.Process().Done():
			return
		case <-v.Loose():
			return
		case <-v.client.Done():
			v.lost()
			return
		case <-tick.C:
		}
		if waited, overdue := v.client.Overdue(); overdue {
			v.condemn(fmt.Sprintf("the VMM has not answered on its control socket for %v", waited.Round(time.Second/10)))
			return
		}
		if v.client.Idle() {
			ctx, cancel := context.WithTimeout(context.Background(), hang/8)
			v.client.Do(ctx, "GET", "/", nil, nil, hang)
			cancel()
		}
	}
}

// lost ends a VMM whose connection has ended though it lives.
func (v *VM) lost() {
	if v.Ended(context.Background(), api.ErrClosed) {
		return
	}
	select {
	case <-v.Loose():
	default:
		v.condemn("the VMM's control socket cannot be used: " + v.client.Err().Error())
	}
}

// condemn ends the VMM, and has Exit say why. What does not end on SIGKILL waits for the kernel, and watch for it.
func (v *VM) condemn(why string) {
	v.mu.Lock()
	if v.verdict == "" {
		v.verdict = why
	}
	v.mu.Unlock()
	v.driver.conf.Log.Error("VMM given up", "sandbox", v.cfg.ID, "pid", v.Process().PID(), "reason", why)
	if err := v.Process().Signal(kill); err != nil {
		v.driver.conf.Log.Error("VMM could not be killed", "sandbox", v.cfg.ID, "error", err)
	}
}

// halt is called by the console when the guest's kernel has halted.
func (v *VM) halt() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.proc != nil {
		v.proc.Signal(kill)
	}
}

// abandon undoes a start.
func (v *VM) abandon() {
	if v.Tether != nil {
		v.Discard()
		return
	}
	if err := v.free(); err != nil {
		v.driver.conf.Log.Error("what a VM held could not be freed", "sandbox", v.cfg.ID, "error", err)
	}
}

// Handle implements vmm.VM.
func (v *VM) Handle() vmm.Handle { return v.Tether.Handle(Name, v.control()) }

// CPU implements vmm.VM.
func (v *VM) CPU() vmm.CPU { return v.cpu }

// Stop implements vmm.VM. Firecracker's device thread serves one request at a time, so no write is under way when it has answered.
func (v *VM) Stop(ctx context.Context) error {
	return v.Alone(ctx, func() error { return v.do(ctx, request{"PATCH", "/vm", api.VM{State: api.Paused}}, nil) })
}

// Cont implements vmm.VM.
func (v *VM) Cont(ctx context.Context) error {
	return v.Alone(ctx, func() error {
		v.saved = false // whatever becomes of the request, the VM may run
		return v.do(ctx, request{"PATCH", "/vm", api.VM{State: api.Resumed}}, nil)
	})
}

// PrivateBytes implements vmm.VM: the memory that only this process has. What the pager copied in is among it.
func (v *VM) PrivateBytes() (int64, error) { return v.Measure(v.Process().AnonymousBytes) }
