package server

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/coveyhq/covey/guest/internal/account"
	"github.com/coveyhq/covey/guest/internal/files"
	"github.com/coveyhq/covey/guest/internal/freeze"
	"github.com/coveyhq/covey/guest/internal/process"
)

// domain is the ErrorInfo domain of all of Covey's errors.
const domain = "covey.dev"

// answer makes a status with one ErrorInfo, as every service of Covey answers.
func answer(code codes.Code, reason, message string) error {
	return build(code, message, &errdetails.ErrorInfo{Reason: reason, Domain: domain})
}

// field answers an illegal value.
func field(name, why string) error {
	return build(codes.InvalidArgument, name+": "+why,
		&errdetails.ErrorInfo{Reason: "INVALID_FIELD", Domain: domain, Metadata: map[string]string{"field": name}},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: name, Description: why}}})
}

func build(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		return status.Error(codes.Internal, message)
	}
	return st.Err()
}

// Reasons why a stream ends that is not the caller's doing.
var (
	errRestored = answer(codes.Unavailable, "SANDBOX_RESTORED", "the sandbox was restored from a snapshot; attach to the process again by its id")
	errReplaced = answer(codes.Aborted, "ATTACHED_ELSEWHERE", process.ErrReplaced.Error())
)

// rules map the domain's errors, first match first. Guest's files and processes are the caller's own, so their errors tell
// no secret and are passed on as they are.
var rules = []struct {
	is     error
	code   codes.Code
	reason string
}{
	{process.ErrNotFound, codes.NotFound, "PROCESS_NOT_FOUND"},
	{process.ErrNotAttachable, codes.FailedPrecondition, "NOT_ATTACHABLE"},
	{process.ErrNoTerminal, codes.FailedPrecondition, "NO_TERMINAL"},
	{freeze.ErrFrozen, codes.FailedPrecondition, "ALREADY_FROZEN"},
	{files.ErrIsDirectory, codes.FailedPrecondition, "IS_A_DIRECTORY"},
	{files.ErrNotRegular, codes.FailedPrecondition, "NOT_A_REGULAR_FILE"},
	{syscall.EISDIR, codes.FailedPrecondition, "IS_A_DIRECTORY"},
	{syscall.ENOTDIR, codes.FailedPrecondition, "NOT_A_DIRECTORY"},
	{syscall.ENOTEMPTY, codes.FailedPrecondition, "DIRECTORY_NOT_EMPTY"},
	{syscall.ELOOP, codes.FailedPrecondition, "TOO_MANY_LINKS"},
	{syscall.EXDEV, codes.FailedPrecondition, "OTHER_FILESYSTEM"},
	{syscall.EBUSY, codes.FailedPrecondition, "FILE_BUSY"},
	{syscall.ETXTBSY, codes.FailedPrecondition, "FILE_BUSY"},
	{syscall.EROFS, codes.FailedPrecondition, "READ_ONLY_FILESYSTEM"},
	{syscall.EINVAL, codes.FailedPrecondition, "NOT_POSSIBLE"},
	{syscall.ENAMETOOLONG, codes.InvalidArgument, "NAME_TOO_LONG"},
	{syscall.ENOSPC, codes.ResourceExhausted, "DISK_FULL"},
	{syscall.EDQUOT, codes.ResourceExhausted, "DISK_FULL"},
	{syscall.EFBIG, codes.ResourceExhausted, "FILE_TOO_LARGE"},
	{syscall.EMFILE, codes.ResourceExhausted, "TOO_MANY_OPEN_FILES"},
	{syscall.ENFILE, codes.ResourceExhausted, "TOO_MANY_OPEN_FILES"},
	{syscall.EAGAIN, codes.ResourceExhausted, "TOO_MANY_PROCESSES"},
	{syscall.ENOMEM, codes.ResourceExhausted, "OUT_OF_MEMORY"},
	{fs.ErrNotExist, codes.NotFound, "FILE_NOT_FOUND"},
	{fs.ErrExist, codes.AlreadyExists, "FILE_EXISTS"},
	{fs.ErrPermission, codes.PermissionDenied, "PERMISSION_DENIED"},
	{context.Canceled, codes.Canceled, "CANCELLED"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "DEADLINE_EXCEEDED"},
}

// mapped makes the status for an error of the domain; nil stays nil, and a status stays as it is.
func mapped(err error) error {
	if err == nil {
		return nil
	}
	var st interface{ GRPCStatus() *status.Status }
	if errors.As(err, &st) {
		return err
	}
	var f interface {
		Field() string
		Reason() string
	}
	switch {
	case errors.As(err, &f):
		return field(f.Field(), f.Reason())
	case errors.Is(err, account.ErrUnknown):
		return field("user", err.Error())
	case errors.Is(err, process.ErrReplaced):
		return errReplaced
	}
	for _, r := range rules {
		if errors.Is(err, r.is) {
			return answer(r.code, r.reason, err.Error())
		}
	}
	return answer(codes.Internal, "INTERNAL", err.Error())
}
