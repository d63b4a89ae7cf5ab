package registry

import (
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
	Invalid      = fault.Invalid
	NotFound     = fault.NotFound
	Exists       = fault.Exists
	Precondition = fault.Precondition
	Exhausted    = fault.Exhausted
	Aborted      = fault.Aborted
	OutOfRange   = fault.OutOfRange
	Unavailable  = fault.Unavailable
	DataLoss     = fault.DataLoss
)

// Errors of a Store.
var (
	// ErrDamaged: the bytes written do not have the checksum that was promised. Nothing of them is kept.
	ErrDamaged = errors.New("the checksum is wrong")
	// ErrAbsent: there is nothing at this path.
	ErrAbsent = errors.New("no such object in the store")
)

// Field is the error of a request's field; the message says what is legal and what was there.
func Field(name, format string, args ...any) *Error { return fault.Field(name, format, args...) }

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
