package apierr

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/fault"
)

var codeOf = map[fault.Kind]codes.Code{
	fault.Invalid:         codes.InvalidArgument,
	fault.NotFound:        codes.NotFound,
	fault.Exists:          codes.AlreadyExists,
	fault.Precondition:    codes.FailedPrecondition,
	fault.Exhausted:       codes.ResourceExhausted,
	fault.Aborted:         codes.Aborted,
	fault.OutOfRange:      codes.OutOfRange,
	fault.Unauthenticated: codes.Unauthenticated,
	fault.Denied:          codes.PermissionDenied,
	fault.Unavailable:     codes.Unavailable,
	fault.Deadline:        codes.DeadlineExceeded,
	fault.DataLoss:        codes.DataLoss,
	fault.Internal:        codes.Internal,
}

// From makes an error of a domain a status. What is no fault is logged, and shown without its text: the message says in which daemon's log it is.
func From(ctx context.Context, log *slog.Logger, daemon string, err error) error {
	var e *fault.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		if e.Err != nil {
			log.WarnContext(ctx, "request failed", "error", err)
		}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	default:
		if _, is := status.FromError(err); is {
			return err // Of the stream itself.
		}
		log.ErrorContext(ctx, "request failed", "error", err)
		return E(codes.Internal, Internal, "internal error; see the log of "+daemon)
	}
	if e.Field != "" {
		return Field(e.Field, e.Message)
	}
	var meta []string
	for _, k := range slices.Sorted(maps.Keys(e.Meta)) {
		meta = append(meta, k, e.Meta[k])
	}
	return E(codeOf[e.Kind], e.Reason, e.Message, meta...)
}
