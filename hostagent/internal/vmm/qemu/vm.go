package qemu

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/launch"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu/qmp"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
)

// VM is one QEMU process. It implements vmm.VM.
type VM struct {
	*tether.Tether
	driver  *Driver
	cfg     vmm.Config
	cpu     vmm.CPU
	control string
	client  *qmp.Client
	// consoleStart is where in the console this VM began.
	consoleStart int64
	// saved is QEMU's state since it was saved, until the VM goes on; it belongs to the operation that is Alone.
	saved []byte
	// unsettled: QEMU may be in a migration, of a former agent or one that was given up. It belongs to the operation that is Alone.
	unsettled bool
	// migration gets the states of migrations, of which the last counts.
	migration chan string

	mu       sync.Mutex // guards shutdown
	shutdown string     // why QEMU said that it ends, "" if it did not
}

var _ vmm.VM = (*VM)(nil)

// newVM makes a VM of a process, which is not connected yet.
func (d *Driver) newVM(cfg vmm.Config, cpu vmm.CPU, proc *launch.Process, control string, consoleStart int64) *VM {
	v := &VM{driver: d, cfg: cfg, cpu: cpu, control: control, consoleStart: consoleStart, migration: make(chan string, 64)}
	v.Tether = tether.New(&d.fleet, proc, tether.Config{ID: cfg.ID, Timeout: d.conf.Timeout, Protocol: protocol, Reason: v.reason, Log: d.conf.Log})
	return v
}

// connect connects to the process, and begins to watch it.
func (v *VM) connect(ctx context.Context) error {
	return v.Ask(ctx, func(ctx context.Context) (err error) {
		if v.client, err = dial(ctx, v.control, v.Process(), v.event); err == nil {
			v.Watch(v.client)
		}
		return err
	})
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
func (v *VM) Handle() vmm.Handle { return v.Tether.Handle(Name, v.control) }

// CPU implements vmm.VM.
func (v *VM) CPU() vmm.CPU { return v.cpu }

// Stop implements vmm.VM.
func (v *VM) Stop(ctx context.Context) error {
	return v.Alone(ctx, func() error { return v.do(ctx, "stop", nil, nil) })
}

// Cont implements vmm.VM. A migration that is under way would refuse it, or stop the VM again at its end.
func (v *VM) Cont(ctx context.Context) error {
	return v.Alone(ctx, func() error {
		v.saved = nil // whatever comes of it
		if err := v.settle(ctx); err != nil {
			return err
		}
		return v.do(ctx, "cont", nil, nil)
	})
}
