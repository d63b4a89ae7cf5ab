package registry

import (
	"errors"
	"fmt"
)

// Kind tells what a caller can do about an error. It is an error itself, so that errors.Is(err, registry.NotFound) works.
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
	// Exhausted: a quota is used up.
	Exhausted Kind = "resource exhausted"
	// Aborted: another took over.
	Aborted Kind = "aborted"
	// OutOfRange: beyond the end of an object.
	OutOfRange Kind = "out of range"
	// Unavailable: database or store are out of reach; try again.
	Unavailable Kind = "unavailable"
	// DataLoss: bytes are not what they were said to be.
	DataLoss Kind = "data loss"
)

func (k Kind) Error() string { return string(k) }

// Error is an error that a caller may see.
type Error struct {
	Kind Kind
	// Reason is for programs, like SNAPSHOT_NOT_FOUND.
	Reason string
	// Message is a sentence for people.
	Message string
	// Field is the request's field that is wrong, for Invalid.
	Field string
	// Meta are the values that a program may want.
	Meta map[string]string
	// Err is for the log.
	Err error
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

// Errors of a Store.
var (
	// ErrDamaged: the bytes written do not have the checksum that was promised. Nothing of them is kept.
	ErrDamaged = errors.New("the checksum is wrong")
	// ErrAbsent: there is nothing at this path.
	ErrAbsent = errors.New("no such object in the store")
)

// Field is the error of a request's field; the message says what is legal and what was there.
func Field(name, format string, args ...any) *Error {
	return &Error{Kind: Invalid, Reason: "INVALID_FIELD", Field: name, Message: fmt.Sprintf(format, args...)}
}

// NoSnapshot is the answer where the caller has no such snapshot.
func NoSnapshot(ref string) *Error {
	return &Error{Kind: NotFound, Reason: "SNAPSHOT_NOT_FOUND", Message: "no snapshot " + ref, Meta: map[string]string{"snapshot_id": ref}}
}

// NoObject is the answer where the caller has no such object.
func NoObject(key string) *Error {
	return &Error{Kind: NotFound, Reason: "OBJECT_NOT_FOUND", Message: "no object " + key, Meta: map[string]string{"key": key}}
}

// unavailable is a failure of the store.
func unavailable(err error) *Error {
	return &Error{Kind: Unavailable, Reason: "STORE_UNAVAILABLE", Message: "the object store is out of reach; try again", Err: err}
}
