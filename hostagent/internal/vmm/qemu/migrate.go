package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/statefile"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
)

// prepare makes QEMU's migration fit for state files, once for each process.
func (v *VM) prepare(ctx context.Context) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	return v.do(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []capability{{"x-ignore-shared", true}, {"events", true}},
	}, nil)
}

// load reads a verified stream into a VM that waits for it.
func (v *VM) load(ctx context.Context, stream *os.File) error {
	err := v.migrate(ctx, "migrate-incoming", stream)
	if err == nil {
		v.unsettled = false // Only one that saves goes on for a moment after it is complete.
	}
	if errors.Is(err, vmm.ErrGone) {
		// QEMU ends when it cannot read a stream, and has said why.
		return fmt.Errorf("%w: %w", vmm.ErrIncompatible, err)
	}
	return err
}

// SaveState implements vmm.VM.
func (v *VM) SaveState(ctx context.Context, path string) error {
	if v.cfg.PagerSocket == "" {
		return fmt.Errorf("save state: %w without a pager", vmm.ErrUnsupported)
	}
	err := v.Alone(ctx, func() error {
		stream, err := v.stream(ctx)
		if err != nil {
			return err
		}
		return format.Write(path, v.driver.meta(&v.cfg, v.cpu), stream)
	})
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// stream returns QEMU's state. QEMU saves it once only until the VM goes on; it stays the same for so long.
func (v *VM) stream(ctx context.Context) ([]byte, error) {
	if err := v.settle(ctx); err != nil {
		return nil, err
	}
	status, err := v.stopped(ctx)
	if err != nil || v.saved != nil {
		return v.saved, err
	}
	if status == "postmigrate" {
		return nil, errors.New("a former host agent has saved the VM, which must go on before it can be saved again")
	}
	f, err := memoryFile("covey-state")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := v.migrate(ctx, "migrate", f); err != nil {
		return nil, err
	}
	if err := v.settle(ctx); err != nil {
		return nil, err
	}
	b, err := statefile.Body(f)
	if err != nil {
		return nil, err
	}
	v.saved = b
	return b, nil
}

// settle waits until QEMU has left a migration behind: it ends those that nobody waits for any more too, and tells that one is complete a
// moment before the VM can go on.
func (v *VM) settle(ctx context.Context) error {
	if !v.unsettled {
		return nil
	}
	ctx, cancel := v.Bounded(ctx)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		under, err := v.migrating(ctx)
		if err != nil {
			return err
		}
		if !under {
			v.unsettled = false
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return tether.Slow(ctx, fmt.Errorf("QEMU does not end its migration: %w", context.Cause(ctx)))
		}
	}
}

// migrating tells whether a migration is under way.
func (v *VM) migrating(ctx context.Context) (bool, error) {
	var migration, run struct{ Status string }
	if err := v.do(ctx, "query-migrate", nil, &migration); err != nil {
		return false, err
	}
	switch migration.Status {
	case "", "none", "completed", "failed", "cancelled":
	default:
		return true, nil
	}
	err := v.do(ctx, "query-status", nil, &run)
	return run.Status == "finish-migrate", err
}

// migrate has QEMU write its state to a file or read it from one, and returns when it has.
func (v *VM) migrate(ctx context.Context, command string, stream *os.File) error {
	ctx, cancel := v.Bounded(ctx)
	defer cancel()
	for len(v.migration) > 0 {
		<-v.migration // of an earlier one
	}
	v.unsettled = true
	err := v.client.SendFile(ctx, "state", stream)
	if err == nil {
		err = v.client.Do(ctx, command, map[string]string{"uri": "fd:state"}, nil)
	}
	if err != nil {
		return v.Explain(ctx, err)
	}
	for {
		select {
		case status := <-v.migration:
			switch status {
			case "completed":
				return nil
			case "failed", "cancelled":
				return v.failedMigration(ctx, status)
			}
		case <-v.Done():
			return v.Gone()
		case <-ctx.Done():
			return tether.Slow(ctx, fmt.Errorf("QEMU does not get done with %s: %w", command, context.Cause(ctx)))
		}
	}
}

func (v *VM) failedMigration(ctx context.Context, status string) error {
	var info struct {
		Desc string `json:"error-desc"`
	}
	err := v.do(ctx, "query-migrate", nil, &info)
	if errors.Is(err, vmm.ErrGone) {
		return err
	}
	return fmt.Errorf("QEMU's migration has %s: %s", status, info.Desc)
}
