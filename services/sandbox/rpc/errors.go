package rpc

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/sandbox"
)

var codeOf = map[sandbox.Kind]codes.Code{
	sandbox.Invalid:         codes.InvalidArgument,
	sandbox.NotFound:        codes.NotFound,
	sandbox.Exists:          codes.AlreadyExists,
	sandbox.Precondition:    codes.FailedPrecondition,
	sandbox.Exhausted:       codes.ResourceExhausted,
	sandbox.Aborted:         codes.Aborted,
	sandbox.OutOfRange:      codes.OutOfRange,
	sandbox.Unauthenticated: codes.Unauthenticated,
	sandbox.Denied:          codes.PermissionDenied,
	sandbox.Unavailable:     codes.Unavailable,
	sandbox.Deadline:        codes.DeadlineExceeded,
	sandbox.DataLoss:        codes.DataLoss,
	sandbox.Internal:        codes.Internal,
}

// toStatus makes an error of the domain a status. What is none is logged and shown without its text.
func toStatus(ctx context.Context, log *slog.Logger, err error) error {
	var e *sandbox.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	default:
		if _, is := status.FromError(err); is {
			return err // Of the stream itself.
		}
		log.ErrorContext(ctx, "request failed", "error", err)
		e = &sandbox.Error{Kind: sandbox.Internal, Reason: "INTERNAL", Message: "internal error; see the log of sandboxd"}
	}
	if e.Field != "" {
		return apierr.Field(e.Field, e.Message)
	}
	var meta []string
	for _, k := range slices.Sorted(maps.Keys(e.Meta)) {
		meta = append(meta, k, e.Meta[k])
	}
	return apierr.E(codeOf[e.Kind], e.Reason, e.Message, meta...)
}
