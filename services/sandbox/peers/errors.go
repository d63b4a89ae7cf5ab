package peers

import (
	"context"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/sandbox"
)

var kinds = map[codes.Code]sandbox.Kind{
	codes.InvalidArgument:    sandbox.Invalid,
	codes.NotFound:           sandbox.NotFound,
	codes.AlreadyExists:      sandbox.Exists,
	codes.FailedPrecondition: sandbox.Precondition,
	codes.ResourceExhausted:  sandbox.Exhausted,
	codes.Aborted:            sandbox.Aborted,
	codes.OutOfRange:         sandbox.OutOfRange,
	codes.Unavailable:        sandbox.Unavailable,
	codes.Canceled:           sandbox.Unavailable,
	codes.DeadlineExceeded:   sandbox.Deadline,
	codes.DataLoss:           sandbox.DataLoss,
	codes.PermissionDenied:   sandbox.Internal,
	codes.Unauthenticated:    sandbox.Internal,
	codes.Unimplemented:      sandbox.Internal,
}

// Who is called, as errors name them; a host is named by its id.
const (
	theScheduler = "the scheduler"
	theRegistry  = "the snapshot registry"
)

// translate makes an error of a call to another daemon one of the domain. Our own context's end stays what it is.
//
// What has no ErrorInfo is gRPC's own. Where nobody was reached it names addresses, which are for the log alone: callers, and the rows that keep
// why work failed, get the name of who was called.
func translate(ctx context.Context, who string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	st := status.Convert(err)
	e := &sandbox.Error{Kind: kinds[st.Code()], Reason: code.Code(st.Code()).String(), Message: st.Message()}
	if e.Kind == "" {
		e.Kind = sandbox.Internal
	}
	if e.Kind == sandbox.Unavailable && apierr.Info(err) == nil {
		e.Message, e.Err = who+" cannot be reached", err
		return e
	}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			e.Reason, e.Meta = d.GetReason(), d.GetMetadata()
		case *errdetails.BadRequest:
			if v := d.GetFieldViolations(); len(v) > 0 {
				e.Field = v[0].GetField()
			}
		}
	}
	return e
}
