// Package fault is how domain packages say what went wrong, in words of their own: nothing here knows of gRPC. Package apierr puts faults into
// statuses at the edge.
//
// Vocabulary
//
//   - fault: an error that a caller may see.
//   - kind: what a caller can do about it.
//   - reason: which one it is, for programs; a domain package has its own.
//
// Errors that are no faults are nobody's business but the log's.
package fault

import "fmt"

// Kind tells what a caller can do about an error. It is an error itself, so that errors.Is(err, fault.NotFound) works. Its text may be
// stored: it never changes.
type Kind string

// Kinds of errors.
const (
	// Invalid: the request can never succeed as it is.
	Invalid Kind = "invalid"
	// NotFound: the caller has no such thing.
	NotFound Kind = "not found"
	// Exists: the name or id is taken.
	Exists Kind = "already exists"
	// Precondition: the thing's state forbids it.
	Precondition Kind = "failed precondition"
	// Exhausted: no room now, or a quota is used up.
	Exhausted Kind = "resource exhausted"
	// Aborted: lost a race, or another took over; try again.
	Aborted Kind = "aborted"
	// OutOfRange: it points at what is no longer kept, or beyond the end.
	OutOfRange Kind = "out of range"
	// Unauthenticated: unknown or revoked key.
	Unauthenticated Kind = "unauthenticated"
	// Denied: the caller's key does not allow it.
	Denied Kind = "permission denied"
	// Unavailable: a part of the mesh is out of reach; try again.
	Unavailable Kind = "unavailable"
	// Deadline: it took too long.
	Deadline Kind = "deadline exceeded"
	// DataLoss: stored bytes are damaged.
	DataLoss Kind = "data loss"
	// Internal: a fault of ours.
	Internal Kind = "internal"
)

func (k Kind) Error() string { return string(k) }

// Error is an error that a caller may see. As JSON it may be stored with the work or request that failed, so that who asks later, or another
// replica, gets the same.
type Error struct {
	Kind Kind
	// Reason is for programs, like TEMPLATE_NOT_FOUND.
	Reason string
	// Message is a sentence for people.
	Message string
	// Field is the request's field that is wrong, for Invalid.
	Field string `json:",omitempty"`
	// Meta are the values that a program may want.
	Meta map[string]string `json:",omitempty"`
	// Err is the cause, for the log alone.
	Err error `json:"-"`
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap lets errors.Is compare the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err != nil {
		return []error{e.Kind, e.Err}
	}
	return []error{e.Kind}
}

// Field is the error of a request's field; the message says what is legal and what was there.
func Field(name, format string, args ...any) *Error {
	return &Error{Kind: Invalid, Reason: "INVALID_FIELD", Field: name, Message: fmt.Sprintf(format, args...)}
}
