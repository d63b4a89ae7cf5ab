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
)

// past is a deadline that ends every read.
var past = time.Unix(1, 0)

// VM is one Firecracker process. It implements vmm.VM.
type VM struct {
	driver  *Driver
	cfg     vmm.Config
	cpu     vmm.CPU
	proc    *launch.Process
	client  *api.Client
	disk    Disk // nil: there is none
	console *console
	words   words
	metrics *meter
	pipes   []*os.File
	pumps   sync.WaitGroup
	// busy is held by the one operation that may be under way; it guards saved.
	busy chan struct{}
	// saved: the state file and the spool are of the VM as it stands now.
	saved bool

	mu      sync.Mutex // guards verdict
	verdict string     // why the driver itself ended the VMM, "" if it did not

	watchers sync.WaitGroup
	exit     vmm.Exit      // written before done is closed
	done     chan struct{} // closed by watch when Firecracker has ended
	detached chan struct{} // closed by detach
	once     sync.Once
}

func (d *Driver) newVM(cfg vmm.Config, cpu vmm.CPU) *VM {
	return &VM{driver: d, cfg: cfg, cpu: cpu, metrics: newMeter(), busy: make(chan struct{}, 1), done: make(chan struct{}), detached: make(chan struct{})}
}

// connect connects to a process, and begins to watch it.
func (v *VM) connect(ctx context.Context) error {
	ctx, cancel := v.bounded(ctx)
	defer cancel()
	client, err := v.dial(ctx)
	if err != nil {
		return v.explain(ctx, err)
	}
	v.client = client
	v.driver.mu.Lock()
	v.driver.vms[v] = struct{}{}
	v.driver.mu.Unlock()
	v.watchers.Go(v.watch)
	v.watchers.Go(v.guard)
	return nil
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
			if pid := client.PeerPID(); pid != v.proc.PID() {
				client.Close()
				return nil, fmt.Errorf("process %d serves the API, want %d", pid, v.proc.PID())
			}
			return client, nil
		}
		select {
		case <-v.proc.Done():
			return nil, api.ErrClosed
		case <-ctx.Done():
			return nil, fmt.Errorf("connect: %w: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

func (v *VM) control() string { return filepath.Join(ownDir(&v.cfg), apiName) }

// watch waits for Firecracker's end, and then frees what the driver holds.
func (v *VM) watch() {
	select {
	case <-v.proc.Done():
	case <-v.detached:
		return
	}
	<-v.client.Done() // the end of the connection follows
	err := v.closePipes()
	if v.disk != nil {
		ctx, cancel := context.WithTimeout(context.Background(), v.driver.conf.Timeout)
		err = errors.Join(err, v.disk.Detach(ctx))
		cancel()
	}
	v.exit = v.reason(v.proc.Exit())
	v.driver.forget(v)
	v.driver.conf.Log.Info("VMM ended", "sandbox", v.cfg.ID, "pid", v.proc.PID(), "reason", v.exit.Reason)
	if err != nil {
		v.driver.conf.Log.Error("what a VM held could not be freed", "sandbox", v.cfg.ID, "error", err)
	}
	close(v.done)
	v.proc.Close()
}

func (d *Driver) forget(v *VM) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.vms, v)
}

// guard ends a VMM that cannot be controlled.
func (v *VM) guard() {
	hang := v.driver.conf.HangTime
	tick := time.NewTicker(hang / 4)
	defer tick.Stop()
	for {
		select {
		case <-v.proc.Done():
			return
		case <-v.detached:
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
	timer := time.NewTimer(moment)
	defer timer.Stop()
	select {
	case <-v.proc.Done():
	case <-v.detached:
	case <-timer.C:
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
	v.driver.conf.Log.Error("VMM given up", "sandbox", v.cfg.ID, "pid", v.proc.PID(), "reason", why)
	if err := v.proc.Signal(kill); err != nil {
		v.driver.conf.Log.Error("VMM could not be killed", "sandbox", v.cfg.ID, "error", err)
	}
}

// halt is called by the console when the guest's kernel has halted.
func (v *VM) halt() {
	if v.proc != nil {
		v.proc.Signal(kill)
	}
}

// detach lets go of the VM, which lives on.
func (v *VM) detach() {
	v.once.Do(func() { close(v.detached) })
	if v.client != nil {
		v.client.Close()
	}
	v.watchers.Wait()
	select {
	case <-v.done:
		return // watch has freed it all
	default:
	}
	v.closePipes()
	if v.disk != nil {
		v.disk.Close()
	}
	if v.proc != nil {
		v.proc.Close()
	}
	v.driver.forget(v)
}

// discard ends a VM that nobody has seen yet, and waits for its end for a while.
func (v *VM) discard() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if v.Kill(ctx) != nil {
		v.detach()
	}
	v.watchers.Wait()
}

// abandon undoes a start that got stuck before its VM was watched.
func (v *VM) abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if v.client != nil {
		v.discard()
		return
	}
	if v.proc != nil {
		v.proc.Kill(ctx)
	}
	if v.disk != nil {
		v.disk.Detach(ctx)
	}
	v.detach()
}

// Handle implements vmm.VM.
func (v *VM) Handle() vmm.Handle {
	return vmm.Handle{Driver: Name, PID: v.proc.PID(), StartTime: v.proc.StartTime(), Control: v.control()}
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
	select {
	case <-v.done:
		return nil
	default:
	}
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

// Stop implements vmm.VM. Firecracker's device thread serves one request at a time, so no write is under way when it has answered.
func (v *VM) Stop(ctx context.Context) error {
	return v.alone(ctx, func() error { return v.do(ctx, request{"PATCH", "/vm", api.VM{State: api.Paused}}, nil) })
}

// Cont implements vmm.VM.
func (v *VM) Cont(ctx context.Context) error {
	return v.alone(ctx, func() error {
		v.saved = false // whatever becomes of the request, the VM may run
		return v.do(ctx, request{"PATCH", "/vm", api.VM{State: api.Resumed}}, nil)
	})
}

// PrivateBytes implements vmm.VM: the memory that only this process has. What the pager copied in is among it.
func (v *VM) PrivateBytes() (int64, error) {
	if v.Exit().Time.IsZero() {
		n, err := anonymousBytes(v.proc.PID())
		if err == nil {
			return n, nil
		}
		select {
		case <-v.proc.Done():
		default:
			return 0, err
		}
	}
	return 0, v.gone()
}
