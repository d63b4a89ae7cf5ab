package agent

import (
	"context"
	"errors"
	"log/slog"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// Reasons that this service answers with, beside those of apierr.
const (
	ReasonIllegalState      = "ILLEGAL_STATE"
	ReasonSnapshotNotFound  = "SNAPSHOT_NOT_FOUND"
	ReasonImageNotFound     = "IMAGE_NOT_FOUND"
	ReasonSnapshotDamaged   = "SNAPSHOT_DAMAGED"
	ReasonRestoreImpossible = "RESTORE_IMPOSSIBLE"
	ReasonDestroyed         = "SANDBOX_DESTROYED"
	ReasonPaused            = "SANDBOX_PAUSED"
	ReasonVMDied            = "VM_DIED"
	ReasonClosing           = "HOST_CLOSING"
)

// toStatus makes an error of the domain a status. What has no place in the contract is logged, and shown without its text by the
// chassis.
func toStatus(ctx context.Context, log *slog.Logger, op, sandboxID string, err error) error {
	if err == nil {
		return nil
	}
	if _, is := status.FromError(err); is {
		return err
	}
	if e := typed(sandboxID, err); e != nil {
		return e
	}
	switch {
	case errors.Is(err, machine.ErrDestroyed):
		return apierr.E(codes.Aborted, ReasonDestroyed, machine.ErrDestroyed.Error(), "sandbox_id", sandboxID)
	case errors.Is(err, machine.ErrVMDied):
		return apierr.E(codes.Aborted, ReasonVMDied, err.Error(), "sandbox_id", sandboxID)
	case errors.Is(err, machine.ErrSnapshotNotFound):
		return apierr.E(codes.NotFound, ReasonSnapshotNotFound, err.Error(), "sandbox_id", sandboxID)
	case errors.Is(err, machine.ErrImageNotFound):
		return apierr.E(codes.NotFound, ReasonImageNotFound, err.Error(), "sandbox_id", sandboxID)
	case errors.Is(err, machine.ErrDamaged):
		return apierr.E(codes.DataLoss, ReasonSnapshotDamaged, err.Error(), "sandbox_id", sandboxID)
	case errors.Is(err, machine.ErrClosing):
		return apierr.E(codes.Unavailable, ReasonClosing, err.Error(), "sandbox_id", sandboxID)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		log.WarnContext(ctx, op+" took too long", "sandbox_id", sandboxID, "error", err)
		return context.DeadlineExceeded
	}
	log.ErrorContext(ctx, op+" failed", "sandbox_id", sandboxID, "error", err)
	return apierr.E(codes.Internal, apierr.Internal, op+" failed on the host; its log says why", "sandbox_id", sandboxID)
}

// typed maps the errors that carry more than a text; nil for others.
func typed(sandboxID string, err error) error {
	var (
		field   *machine.FieldError
		lock    *machine.LockedError
		here    *machine.NotHereError
		ill     *machine.IllegalError
		other   *machine.OtherLifeError
		full    *machine.ExhaustedError
		restore *machine.RestoreError
	)
	switch {
	case errors.As(err, &field):
		return apierr.Field(field.Field, field.Problem)
	case errors.As(err, &lock):
		return apierr.Field(lock.Field, "must be "+strconv.FormatInt(lock.Has, 10)+" as in snapshot "+lock.SnapshotID+", got "+strconv.FormatInt(lock.Asked, 10))
	case errors.As(err, &here):
		return apierr.E(codes.NotFound, apierr.SandboxNotHere, here.Error(), "sandbox_id", here.ID)
	case errors.As(err, &ill):
		return apierr.E(codes.FailedPrecondition, ReasonIllegalState, ill.Error(), "sandbox_id", ill.ID, "state", string(ill.State), "reason", ill.Reason)
	case errors.As(err, &other):
		return apierr.E(codes.FailedPrecondition, ReasonIllegalState, other.Error(), "sandbox_id", other.ID, "state", string(other.State))
	case errors.As(err, &full):
		return apierr.E(codes.ResourceExhausted, apierr.NoCapacity, full.Error(), "sandbox_id", sandboxID, "asked", full.Asked.String(), "free", full.Free.String())
	case errors.As(err, &restore):
		code, reason := codes.FailedPrecondition, ReasonRestoreImpossible
		if errors.Is(err, machine.ErrDamaged) {
			code, reason = codes.DataLoss, ReasonSnapshotDamaged
		}
		return apierr.E(code, reason, restore.Error(), "sandbox_id", sandboxID, "snapshot_id", restore.SnapshotID)
	}
	return nil
}
