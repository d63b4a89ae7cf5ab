package network

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// errLocked: another process holds the lock.
var errLocked = errors.New("another process holds it")

// lockFile opens a file, made if need be, and locks it until it is closed. With wait false it returns errLocked rather than wait.
func lockFile(path string, wait bool) (*os.File, error) {
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the directory was removed in between
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), how)
		if err == nil && isAt(f, path) {
			return f, nil
		}
		f.Close()
		switch {
		case err == unix.EWOULDBLOCK:
			return nil, errLocked
		case err != nil && err != unix.EINTR:
			return nil, fmt.Errorf("%s: flock: %w", path, err)
		}
		// Who held it has removed the file: what was locked is nothing any more.
	}
}

// isAt tells whether a path still leads to an open file.
func isAt(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// rng is the range of one agent, locked until closed.
//
// Its file holds the name of the agent that it belongs to, so that this one finds its slots again after it was killed. The range of an
// agent that is away stays reserved for as long as there are slots in it.
type rng struct {
	n    int
	path string
	file *os.File
}

// takeRange locks the range that the owner has, or one that is free. Callers hold the lock of the directory.
func takeRange(dir, owner string) (rng, error) {
	free, err := rng{}, fmt.Errorf("all %d ranges of %s are taken", ranges, space)
	for n := range ranges {
		path := filepath.Join(dir, strconv.Itoa(n))
		if _, e := os.Stat(path); e != nil {
			if free.path == "" {
				free = rng{n: n, path: path}
			}
			continue
		}
		f, e := lockFile(path, false)
		has, isOwner := ownerOf(path, owner)
		switch {
		case isOwner && e == errLocked:
			err = fmt.Errorf("range %d of %q is in use by another process", n, owner)
			return rng{}, err
		case e == errLocked:
			continue
		case e != nil:
			return rng{}, e
		case isOwner:
			return rng{n, path, f}, nil
		}
		if free.path == "" && (has == "" || !hasSlots(n)) {
			free = rng{n: n, path: path}
		}
		f.Close()
	}
	if free.path == "" {
		return rng{}, err
	}
	return free.take(owner)
}

func (r rng) take(owner string) (_ rng, err error) {
	if r.file, err = lockFile(r.path, false); err != nil {
		return rng{}, fmt.Errorf("range %d: %w", r.n, err)
	}
	if err = r.file.Truncate(0); err == nil {
		_, err = io.WriteString(r.file, owner)
	}
	if err != nil {
		return rng{}, errors.Join(err, r.file.Close())
	}
	return r, nil
}

func ownerOf(path, owner string) (has string, isOwner bool) {
	b, err := os.ReadFile(path)
	return string(b), err == nil && string(b) == owner
}

// hasSlots tells whether there are namespaces of a range.
func hasSlots(n int) bool {
	names, err := namespacesOf(n)
	return err != nil || len(names) > 0
}

// namespacesOf lists the namespaces of a range.
func namespacesOf(n int) (names []string, err error) {
	entries, err := os.ReadDir(namespaces)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), rangePrefix(n)) {
			names = append(names, e.Name())
		}
	}
	return names, err
}
