package sandbox

import (
	"context"
	"errors"
	"fmt"
)

// Kind tells what a caller can do about an error. It is an error itself, so that errors.Is(err, sandbox.NotFound) works.
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
	// Exhausted: no room now.
	Exhausted Kind = "resource exhausted"
	// Aborted: lost a race; try again.
	Aborted Kind = "aborted"
	// OutOfRange: a token points at what is no longer kept.
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

// Error is an error that a caller may see. It is stored with the work or request that failed, so that who asks later, or
// another replica, gets the same.
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
}

func (e *Error) Error() string { return e.Message }

// Unwrap lets errors.Is compare the kind.
func (e *Error) Unwrap() error { return e.Kind }

// ErrConflict is the store's answer to a compare-and-set that lost.
var ErrConflict = errors.New("the sandbox was changed by another")

// field is the error of a request's field; the message says what is legal and what was there.
func field(name, format string, args ...any) *Error {
	return &Error{Kind: Invalid, Reason: "INVALID_FIELD", Field: name, Message: fmt.Sprintf(format, args...)}
}

func notFound(what, id string) *Error {
	return &Error{Kind: NotFound, Reason: "SANDBOX_NOT_FOUND", Message: fmt.Sprintf("no %s %s", what, id), Meta: map[string]string{"sandbox_id": id}}
}

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
