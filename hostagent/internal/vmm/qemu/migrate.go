package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
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
	err := v.alone(ctx, func() error {
		if err := v.stopped(ctx); err != nil {
			return err
		}
		stream, err := memoryFile("covey-state")
		if err != nil {
			return err
		}
		defer stream.Close()
		if err := v.migrate(ctx, "migrate", stream); err != nil {
			return err
		}
		return v.driver.writeState(path, &v.cfg, stream)
	})
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// migrate has QEMU write its state to a file or read it from one, and returns when it has.
func (v *VM) migrate(ctx context.Context, command string, stream *os.File) error {
	ctx, cancel := v.bounded(ctx)
	defer cancel()
	for len(v.migration) > 0 {
		<-v.migration // of an earlier one
	}
	err := v.client.SendFile(ctx, "state", stream)
	if err == nil {
		err = v.client.Do(ctx, command, map[string]string{"uri": "fd:state"}, nil)
	}
	if err != nil {
		return v.explain(ctx, err)
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
		case <-v.done:
			return v.gone()
		case <-ctx.Done():
			return slow(ctx, fmt.Errorf("QEMU does not get done with %s: %w", command, context.Cause(ctx)))
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
