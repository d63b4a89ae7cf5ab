package peers

import (
	"context"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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

// translate makes an error of a call to another daemon one of the domain. Our own context's end stays what it is.
func translate(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	st := status.Convert(err)
	e := &sandbox.Error{Kind: kinds[st.Code()], Reason: st.Code().String(), Message: st.Message()}
	if e.Kind == "" {
		e.Kind = sandbox.Internal
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
