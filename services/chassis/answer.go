package chassis

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

func (d *Daemon) answerUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	if err != nil {
		return nil, d.answer(ctx, info.FullMethod, err)
	}
	return resp, nil
}

func (d *Daemon) answerStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := next(srv, ss); err != nil {
		return d.answer(ss.Context(), info.FullMethod, err)
	}
	return nil
}

// answer makes the status that a caller gets of the error that left a handler. It always has an ErrorInfo, and nothing in it
// that was not meant for callers.
func (d *Daemon) answer(ctx context.Context, fullMethod string, err error) error {
	var s interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &s):
		return d.complete(ctx, fullMethod, s.GRPCStatus(), err)
	case errors.Is(err, context.DeadlineExceeded):
		return apierr.E(codes.DeadlineExceeded, reason(codes.DeadlineExceeded), "the call was not done by its deadline")
	case errors.Is(err, context.Canceled):
		return apierr.E(codes.Canceled, reason(codes.Canceled), "the call was cancelled")
	}
	return d.internal(ctx, fullMethod, err)
}

// complete gives a status an ErrorInfo if it has none. One that is not from package apierr may be gRPC's own.
func (d *Daemon) complete(ctx context.Context, fullMethod string, st *status.Status, err error) error {
	if apierr.Info(st.Err()) != nil {
		return st.Err()
	}
	message := st.Message()
	switch {
	case st.Code() == codes.Internal && strings.HasPrefix(message, "grpc: ") && strings.Contains(message, "unmarshal"):
		// gRPC's own words, here or in the guest, for what the caller sent.
		return apierr.E(codes.InvalidArgument, "INVALID_MESSAGE", "a message is not one of "+fullMethod)
	case st.Code() == codes.OK || (st.Code() == codes.Unknown || st.Code() == codes.Internal) && !d.relayed(fullMethod):
		return d.internal(ctx, fullMethod, err)
	case st.Code() == codes.Unavailable:
		// It names addresses, which callers have no use for.
		d.log.WarnContext(ctx, "another service cannot be reached", "method", fullMethod, "error", err)
		message = "a service that this call needs cannot be reached; try again"
	}
	full, derr := status.New(st.Code(), message).WithDetails(&errdetails.ErrorInfo{Reason: reason(st.Code()), Domain: apierr.Domain})
	if derr != nil {
		return st.Err()
	}
	return full.Err()
}

// relayed tells calls that a guest has answered: its statuses are meant for callers.
func (d *Daemon) relayed(fullMethod string) bool {
	service, _, _ := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	return d.opts.relay != nil && !d.own[service]
}

// internal logs an error that was not meant for callers, and gives them a way to name it.
func (d *Daemon) internal(ctx context.Context, fullMethod string, err error) error {
	d.log.ErrorContext(ctx, "a call failed inside", "method", fullMethod, "error", err)
	id := tenant.RequestID(ctx)
	return apierr.E(codes.Internal, apierr.Internal, "internal error; the log has it under request id "+id, "request_id", id)
}

// reason is the reason of statuses that came without: the code's name in upper snake case.
func reason(c codes.Code) string { return code.Code(c).String() }
