package sandbox

import (
	"context"
	"errors"

	"github.com/coveyhq/covey/services/chassis/fault"
)

// Errors that a caller may see are faults.
type (
	Kind  = fault.Kind
	Error = fault.Error
)

// Kinds of errors; package fault says what they mean.
const (
	Invalid         = fault.Invalid
	NotFound        = fault.NotFound
	Exists          = fault.Exists
	Precondition    = fault.Precondition
	Exhausted       = fault.Exhausted
	Aborted         = fault.Aborted
	OutOfRange      = fault.OutOfRange
	Unauthenticated = fault.Unauthenticated
	Denied          = fault.Denied
	Unavailable     = fault.Unavailable
	Deadline        = fault.Deadline
	DataLoss        = fault.DataLoss
	Internal        = fault.Internal
)

// ErrConflict is the store's answer to a compare-and-set that lost.
var ErrConflict = errors.New("the sandbox was changed by another")

// ErrCrowded: the host has another sandbox of the same anti-affinity.
var ErrCrowded = &Error{Kind: Exhausted, Reason: "ANTI_AFFINITY", Message: "every host that was chosen has another sandbox of the same anti-affinity by now; try again"}

// field is the error of a request's field; the message says what is legal and what was there.
func field(name, format string, args ...any) *Error { return fault.Field(name, format, args...) }

// asError makes an error that may be stored and shown. What is not ours becomes an Internal one, whose text is for the
// log alone.
func asError(err error) *Error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Kind: Deadline, Reason: "WORK_TIMEOUT", Message: "it took too long"}
	case errors.Is(err, ErrConflict):
		return &Error{Kind: Aborted, Reason: "CONCURRENT_CHANGE", Message: "the sandbox was changed by another operation meanwhile; look at its state and try again"}
	}
	return &Error{Kind: Internal, Reason: "INTERNAL", Message: "internal error; see the log of sandboxd"}
}
