package files

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// WriteOptions say how a file is written.
type WriteOptions struct {
	// Mode are the permission bits of the new file; 0 means 0644 or, where the file exists, its own.
	Mode uint32
	// MakeParents makes missing parent directories.
	MakeParents bool
	// Append adds to the file instead of replacing it.
	Append bool
}

// Writer is a file that is being written. Use it from one goroutine; end it with Commit or Abort.
type Writer struct {
	actor *Actor
	file  *os.File
	path  string // where the file is to be
	temp  string // where it is until Commit; empty for an append
	ended bool
}

// Create begins to write a file. It replaces the file as a whole in Commit; its owner is the actor, or whoever owns the file
// that it replaces if the actor may give it away. A symbolic link is followed.
func (a *Actor) Create(p string, o WriteOptions) (*Writer, error) {
	p, err := a.Resolve("path", p)
	if err != nil {
		return nil, err
	}
	if o.Mode > 0o7777 {
		return nil, &PathError{"mode", fmt.Sprintf("must be permission bits up to 07777, got %#o", o.Mode)}
	}
	w := &Writer{actor: a, path: p}
	err = a.do(func() error {
		if o.MakeParents {
			if err := makeParents(path.Dir(p)); err != nil {
				return err
			}
		}
		return w.open(o)
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// open runs with the actor's permissions.
func (w *Writer) open(o WriteOptions) error {
	target, err := followLinks(w.path)
	if err != nil {
		return err
	}
	w.path = target
	old, err := os.Lstat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = nil
	case err != nil:
		return err
	default:
		if err := mustBeRegular(target, old); err != nil {
			return err
		}
		// A file is replaced only by those who may write it, although the directory's owner could do without.
		if err := unix.Faccessat(unix.AT_FDCWD, target, unix.W_OK, unix.AT_EACCESS); err != nil {
			return &fs.PathError{Op: "write", Path: target, Err: err}
		}
	}
	if o.Append {
		return w.openToAppend(o, old == nil)
	}
	return w.openTemp(o, old)
}

func (w *Writer) openToAppend(o WriteOptions, fresh bool) error {
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOCTTY, 0o644)
	if err != nil {
		return err
	}
	if o.Mode != 0 && fresh {
		if err := unix.Fchmod(int(f.Fd()), o.Mode); err != nil {
			f.Close()
			return &fs.PathError{Op: "chmod", Path: w.path, Err: err}
		}
	}
	w.file = f
	return nil
}

// tempPrefix begins the names of files that are being written, which no watch tells of: what is told is their appearance under their own names.
const tempPrefix = ".covey-"

// randomChars is how many characters rand.Text has.
const randomChars = 26

// isTemp tells whether a path is that of a file that is being written.
func isTemp(p string) bool {
	rest, ok := strings.CutPrefix(path.Base(p), tempPrefix)
	return ok && len(rest) == randomChars
}

func (w *Writer) openTemp(o WriteOptions, old fs.FileInfo) error {
	mode := o.Mode
	if mode == 0 {
		mode = 0o644
		if old != nil {
			mode = old.Sys().(*syscall.Stat_t).Mode & 0o7777
		}
	}
	w.temp = path.Join(path.Dir(w.path), tempPrefix+rand.Text())
	f, err := os.OpenFile(w.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		w.temp = ""
		return err
	}
	w.file = f
	if old != nil {
		st := old.Sys().(*syscall.Stat_t)
		_ = unix.Fchown(int(f.Fd()), int(st.Uid), int(st.Gid)) // the actor's own if it may not
	}
	if err := unix.Fchmod(int(f.Fd()), mode); err != nil { // after the owner: chown clears set-id bits
		w.file.Close()
		os.Remove(w.temp)
		return &fs.PathError{Op: "chmod", Path: w.temp, Err: err}
	}
	return nil
}

// Write adds bytes.
func (w *Writer) Write(b []byte) (int, error) { return w.file.Write(b) }

// Commit makes the file appear at its path and describes it.
func (w *Writer) Commit() (File, error) {
	if err := w.file.Close(); err != nil {
		w.Abort()
		return File{}, err
	}
	var f File
	err := w.actor.do(func() error {
		if w.temp != "" {
			if err := unix.Rename(w.temp, w.path); err != nil {
				return &fs.PathError{Op: "replace", Path: w.path, Err: err}
			}
		}
		w.ended = true
		info, err := os.Lstat(w.path)
		if err == nil {
			f = describe(w.path, info)
		}
		return err
	})
	if err != nil {
		w.Abort()
	}
	return f, err
}

// Abort leaves the path as it was, but for what was appended. After Commit it does nothing.
func (w *Writer) Abort() {
	if w.ended {
		return
	}
	w.ended = true
	w.file.Close()
	if w.temp != "" {
		_ = w.actor.do(func() error { return os.Remove(w.temp) })
	}
}

// maxLinks is how many links the kernel follows before it says ELOOP (path_resolution(7)).
const maxLinks = 40

// followLinks finds where a path leads whose last element is a link, even where nothing is there yet.
func followLinks(p string) (string, error) {
	at := p
	for range maxLinks {
		to, err := os.Readlink(at)
		if errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			return at, nil
		}
		if err != nil {
			return "", err
		}
		if !path.IsAbs(to) {
			to = path.Dir(at) + "/" + to
		}
		at = to // not cleaned: ".." after a link means the link target's parent
	}
	return "", &fs.PathError{Op: "open", Path: p, Err: syscall.ELOOP}
}
