package files

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/guest/internal/account"
)

// PathError: a path that is never legal.
type PathError struct{ Name, Why string }

func (e *PathError) Error() string { return e.Name + ": " + e.Why }

// Field names the field, in the words of the contract.
func (e *PathError) Field() string { return e.Name }

// Reason says what is wrong with it.
func (e *PathError) Reason() string { return e.Why }

// Actor is a user on whose behalf files are used.
type Actor struct{ user *account.User }

// NewActor makes the actor for a user.
func NewActor(u *account.User) *Actor { return &Actor{user: u} }

// maxPath is the longest path that Linux takes, without its NUL (PATH_MAX of linux/limits.h, less one).
const maxPath = 4095

// Resolve checks a path and makes it absolute and clean; field names it in errors. The empty path is refused.
func (a *Actor) Resolve(field, p string) (string, error) {
	switch {
	case p == "":
		return "", &PathError{field, "must be a path, is empty"}
	case strings.Contains(p, "\x00"):
		return "", &PathError{field, "path must not contain NUL"}
	case len(p) > maxPath:
		return "", &PathError{field, fmt.Sprintf("path must be at most %d bytes, got %d", maxPath, len(p))}
	case climbs(p):
		if path.IsAbs(p) {
			return "", &PathError{field, fmt.Sprintf("path must not climb above /, got %q", p)}
		}
		return "", &PathError{field, fmt.Sprintf("relative path must not climb above the home directory, got %q", p)}
	}
	if !path.IsAbs(p) {
		p = a.home() + "/" + p
	}
	if p = path.Clean(p); len(p) > maxPath {
		return "", &PathError{field, fmt.Sprintf("path must be at most %d bytes with the home directory", maxPath)}
	}
	return p, nil
}

func (a *Actor) home() string {
	if path.IsAbs(a.user.Home) {
		return a.user.Home
	}
	return "/"
}

// climbs tells whether ".." leads above where the path begins, at any point of it.
func climbs(p string) bool {
	depth := 0
	for part := range strings.SplitSeq(p, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// errStuck: the thread could not become root again. It ends with its goroutine.
var errStuck = errors.New("a thread could not return to root")

// do runs f with the actor's permissions. Descriptors that f opens keep them.
func (a *Actor) do(f func() error) error {
	if a.user.UID == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() { done <- a.onThread(f) }()
	return <-done
}

func (a *Actor) onThread(f func() error) error {
	runtime.LockOSThread()
	err := a.become()
	if err == nil {
		err = f()
	}
	if back := becomeRoot(); back != nil {
		return errors.Join(err, errStuck, back) // still locked: the runtime ends the thread with this goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// become changes this thread alone: the system calls are made raw, since Go's own would change every thread.
func (a *Actor) become() error {
	groups := make([]uint32, len(a.user.Groups), len(a.user.Groups)+1)
	for i, g := range a.user.Groups {
		groups[i] = uint32(g)
	}
	if err := setGroups(groups); err != nil {
		return fmt.Errorf("take the groups of %s: %w", a.user.Name, err)
	}
	if err := setEffective(unix.SYS_SETRESGID, a.user.GID); err != nil {
		return fmt.Errorf("take the group of %s: %w", a.user.Name, err)
	}
	// Last: without root as the effective user the thread has no capabilities.
	if err := setEffective(unix.SYS_SETRESUID, a.user.UID); err != nil {
		return fmt.Errorf("become %s: %w", a.user.Name, err)
	}
	return nil
}

func becomeRoot() error {
	if err := setEffective(unix.SYS_SETRESUID, 0); err != nil {
		return err
	}
	if err := setEffective(unix.SYS_SETRESGID, 0); err != nil {
		return err
	}
	return setGroups(nil)
}

// setEffective sets the effective id and leaves the real and the saved one.
func setEffective(call uintptr, id int) error {
	keep := ^uintptr(0)
	if _, _, errno := syscall.RawSyscall(call, keep, uintptr(id), keep); errno != 0 {
		return errno
	}
	return nil
}

func setGroups(groups []uint32) error {
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0); errno != 0 {
		return errno
	}
	return nil
}
