package machine

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// validID is what sandbox and snapshot ids look like; they name files and cgroups.
var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_]{0,63}$`)

// Errors of this package beside the typed ones below. Anything else is an internal failure.
var (
	// ErrSnapshotNotFound: neither this host nor a peer nor the registry has the snapshot.
	ErrSnapshotNotFound = errors.New("no such snapshot")
	// ErrImageNotFound: the host has no stock image of this name.
	ErrImageNotFound = errors.New("no such image")
	// ErrDamaged: saved data is not what was written.
	ErrDamaged = errors.New("the snapshot is damaged")
	// ErrDestroyed: the sandbox was destroyed while the operation was under way.
	ErrDestroyed = errors.New("the sandbox was destroyed meanwhile")
	// ErrVMDied: the VM ended while the operation was under way.
	ErrVMDied = errors.New("the VM ended meanwhile")
	// ErrClosing: the agent is going down and takes nothing new.
	ErrClosing = errors.New("the host agent is going down")
)

// FieldError is a request that no host could fulfil.
type FieldError struct {
	// Field is its name in the request; Problem says what is legal and what was given.
	Field, Problem string
}

func (e *FieldError) Error() string { return e.Field + " " + e.Problem }

// NotHereError is an operation on a sandbox that this host does not have.
type NotHereError struct{ ID string }

func (e *NotHereError) Error() string { return fmt.Sprintf("sandbox %s is not on this host", e.ID) }

// OtherLifeError is an operation on a life of a sandbox that is not the one which this host has: the request came late.
type OtherLifeError struct {
	ID string
	// Asked names the life that was meant by the start that began it, Here the one that is here; empty where none has begun.
	Asked, Here string
	// State is that of the one that is here.
	State State
}

func (e *OtherLifeError) Error() string {
	here := e.Here
	if here == "" {
		here = "none yet"
	}
	return fmt.Sprintf("sandbox %s is no longer in the life that start %s began; the one here is of start %s and %s", e.ID, e.Asked, here, e.State)
}

// IllegalError is an operation that the sandbox's state forbids.
type IllegalError struct {
	ID string
	// Op is what was asked: "pause".
	Op    string
	State State
	// Reason is why it is in that state, if it was not asked for.
	Reason string
	// Legal are the states in which Op would be legal.
	Legal []State
}

func (e *IllegalError) Error() string {
	is := string(e.State)
	if e.Reason != "" {
		is += " (" + e.Reason + ")"
	}
	legal := make([]string, len(e.Legal))
	for i, s := range e.Legal {
		legal[i] = string(s)
	}
	return fmt.Sprintf("cannot %s sandbox %s: it is %s; legal only when %s", e.Op, e.ID, is, strings.Join(legal, " or "))
}

// ExhaustedError is a start for which the host has no room.
type ExhaustedError struct {
	// Lacking names what there is too little of: "memory".
	Lacking     []string
	Asked, Free Room
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("no room on this host: too little %s; asked: %s; free: %s", strings.Join(e.Lacking, " and "), e.Asked, e.Free)
}

// RestoreError is saved memory that cannot be restored here; a policy may allow to boot from the disk instead.
type RestoreError struct {
	SnapshotID string
	Err        error
}

func (e *RestoreError) Error() string {
	return fmt.Sprintf("the memory of snapshot %s cannot be restored: %v", e.SnapshotID, e.Err)
}

func (e *RestoreError) Unwrap() error { return e.Err }

// LockedError is a request for another size than the snapshot's, which is baked in.
type LockedError struct {
	SnapshotID string
	// Field is what differs; Has is the snapshot's and Asked the request's.
	Field      string
	Has, Asked int64
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s must be %d as in snapshot %s, got %d", e.Field, e.Has, e.SnapshotID, e.Asked)
}
