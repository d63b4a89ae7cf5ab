// Package apierr makes the errors that Covey's services answer with: a gRPC status with exactly one google.rpc.ErrorInfo,
// whose reason a program can switch on and whose message a person can read.
//
// It belongs in adapters. Domain packages return their own errors, and their rpc package maps them to these. Rejected:
// carrying a gRPC code in domain errors, because the domain would then decide what the transport says.
package apierr

import (
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
)

// Domain is the ErrorInfo domain of all of Covey's errors.
const Domain = "covey.dev"

// Reasons that more than one service uses.
const (
	InvalidField   = "INVALID_FIELD"    // INVALID_ARGUMENT; metadata field
	Internal       = "INTERNAL"         // INTERNAL; metadata request_id
	SandboxNotHere = "SANDBOX_NOT_HERE" // NOT_FOUND; this host does not run the sandbox, another may
	NoCapacity     = "NO_CAPACITY"      // RESOURCE_EXHAUSTED; no host has room
)

// E makes an error with a code, a reason (upper snake case), a message for people and metadata as key, value pairs. A last key
// without a value is kept with an empty one.
func E(code codes.Code, reason, message string, keyValues ...string) error {
	return build(code, message, &errdetails.ErrorInfo{Reason: reason, Domain: Domain, Metadata: pairs(keyValues)})
}

// Field makes the error for an illegal value in a request: INVALID_ARGUMENT, reason INVALID_FIELD. The message says what is legal
// and what was sent, like "must be 1 to 8, got 1000".
func Field(field, message string) error {
	return build(codes.InvalidArgument, field+": "+message,
		&errdetails.ErrorInfo{Reason: InvalidField, Domain: Domain, Metadata: map[string]string{"field": field}},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: message}}})
}

func build(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		// Only code OK refuses details: the caller meant an error, so it gets one.
		return status.Error(codes.Internal, message)
	}
	return st.Err()
}

func pairs(kv []string) map[string]string {
	if len(kv) == 0 {
		return nil
	}
	m := make(map[string]string, (len(kv)+1)/2)
	for i := 0; i < len(kv); i += 2 {
		v := ""
		if i+1 < len(kv) {
			v = kv[i+1]
		}
		m[kv[i]] = v
	}
	return m
}

// Info returns the ErrorInfo of an error that is, or wraps, a status; nil if it has none.
func Info(err error) *errdetails.ErrorInfo {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return nil
	}
	for _, d := range s.GRPCStatus().Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

// Reason returns the reason of an error's ErrorInfo if that is Covey's; else "".
func Reason(err error) string {
	if info := Info(err); info.GetDomain() == Domain {
		return info.GetReason()
	}
	return ""
}
