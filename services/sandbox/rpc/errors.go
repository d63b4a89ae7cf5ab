package rpc

import (
	"context"
	"errors"
	"log/slog"
	"maps"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/coveyhq/covey/services/sandbox"
)

// domain is that of all of Covey's errors.
const domain = "covey.dev"

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
	message, meta := e.Message, maps.Clone(e.Meta)
	if e.Field != "" {
		if meta == nil {
			meta = map[string]string{}
		}
		meta["field"] = e.Field
		message = e.Field + ": " + message
	}
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: e.Reason, Domain: domain, Metadata: meta}}
	if e.Field != "" {
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: e.Field, Description: e.Message}}})
	}
	st, derr := status.New(codeOf[e.Kind], message).WithDetails(details...)
	if derr != nil {
		log.ErrorContext(ctx, "error details", "error", derr)
		return status.Error(codeOf[e.Kind], message)
	}
	return st.Err()
}
