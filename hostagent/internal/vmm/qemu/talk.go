package qemu

import (
	"context"
	"errors"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu/qmp"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
)

var protocol = tether.Protocol{Closed: qmp.ErrClosed, Garbage: qmp.ErrGarbage, Refusal: func(err error) bool {
	var refusal *qmp.Error
	return errors.As(err, &refusal)
}}

// do has QEMU execute a command, in bounded time.
func (v *VM) do(ctx context.Context, command string, args, out any) error {
	return v.Ask(ctx, func(ctx context.Context) error { return v.client.Do(ctx, command, args, out) })
}

// stopped returns QEMU's word for the state of a VM that stands still.
func (v *VM) stopped(ctx context.Context) (string, error) {
	var status struct {
		Running bool
		Status  string
	}
	if err := v.do(ctx, "query-status", nil, &status); err != nil {
		return "", err
	}
	if status.Running {
		return "", vmm.ErrNotStopped
	}
	return status.Status, nil
}
