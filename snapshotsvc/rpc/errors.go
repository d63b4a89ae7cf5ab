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
	"github.com/coveyhq/covey/snapshotsvc/registry"
)

var codeOf = map[registry.Kind]codes.Code{
	registry.Invalid:      codes.InvalidArgument,
	registry.NotFound:     codes.NotFound,
	registry.Exists:       codes.AlreadyExists,
	registry.Precondition: codes.FailedPrecondition,
	registry.Exhausted:    codes.ResourceExhausted,
	registry.Aborted:      codes.Aborted,
	registry.OutOfRange:   codes.OutOfRange,
	registry.Unavailable:  codes.Unavailable,
	registry.DataLoss:     codes.DataLoss,
}

// toStatus makes an error of the domain a status. What is none is logged and shown without its text.
func toStatus(ctx context.Context, log *slog.Logger, err error) error {
	var e *registry.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
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
		return apierr.E(codes.Internal, apierr.Internal, "internal error; see the log of snapshotd")
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
