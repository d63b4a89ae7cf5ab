package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"
)

// makeParents makes a directory and its parents, with mode 0755. It runs with the actor's permissions.
func makeParents(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return nil
}

// MakeDirectory makes a directory and its missing parents. Mode, 0 for 0755, is that of the directory itself; one that
// exists keeps its own.
func (a *Actor) MakeDirectory(p string, mode uint32) (f File, err error) {
	if p, err = a.Resolve("path", p); err != nil {
		return f, err
	}
	if mode > 0o7777 {
		return f, &PathError{"mode", fmt.Sprintf("must be permission bits up to 07777, got %#o", mode)}
	}
	if mode == 0 {
		mode = 0o755
	}
	err = a.do(func() error {
		err := makeDirectory(p, mode)
		if err != nil {
			return err
		}
		info, err := os.Lstat(p)
		if err == nil {
			f = describe(p, info)
		}
		return err
	})
	return f, err
}

func makeDirectory(p string, mode uint32) error {
	if info, err := os.Stat(p); err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: p, Err: syscall.ENOTDIR}
		}
		return nil
	}
	if err := makeParents(path.Dir(p)); err != nil {
		return err
	}
	if err := os.Mkdir(p, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	} else if err != nil {
		return nil // another was quicker
	}
	if err := unix.Chmod(p, mode); err != nil { // mkdir would apply our umask
		return &fs.PathError{Op: "chmod", Path: p, Err: err}
	}
	return nil
}

// Move renames a file or directory. Without overwrite an existing destination is fs.ErrExist.
func (a *Actor) Move(source, destination string, overwrite bool) (f File, err error) {
	if source, err = a.Resolve("source", source); err != nil {
		return f, err
	}
	if destination, err = a.Resolve("destination", destination); err != nil {
		return f, err
	}
	flags := uint(unix.RENAME_NOREPLACE)
	if overwrite {
		flags = 0
	}
	err = a.do(func() error {
		// The source is looked at first, so that an error names what is missing.
		if _, err := os.Lstat(source); err != nil {
			return err
		}
		if err := unix.Renameat2(unix.AT_FDCWD, source, unix.AT_FDCWD, destination, flags); err != nil {
			return &fs.PathError{Op: "move " + source + " to", Path: destination, Err: err}
		}
		info, err := os.Lstat(destination)
		if err == nil {
			f = describe(destination, info)
		}
		return err
	})
	return f, err
}

// Remove removes a file, or a directory: an empty one, or with recursive all that is in it too.
func (a *Actor) Remove(p string, recursive bool) error {
	p, err := a.Resolve("path", p)
	if err != nil {
		return err
	}
	if p == "/" {
		return &PathError{"path", "must not be /"}
	}
	return a.do(func() error {
		if _, err := os.Lstat(p); err != nil || !recursive {
			if err == nil {
				err = os.Remove(p)
			}
			return err
		}
		return os.RemoveAll(p)
	})
}
