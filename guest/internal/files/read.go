package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNotRegular: the operation is for regular files.
var ErrNotRegular = errors.New("not a regular file")

// ErrIsDirectory: a file was wanted, and this is a directory.
var ErrIsDirectory = errors.New("is a directory")

// Open opens a regular file for reading and describes it as it is now. Nothing else is read: a pipe or a device could keep
// its reader for ever.
func (a *Actor) Open(p string) (*os.File, File, error) {
	p, err := a.Resolve("path", p)
	if err != nil {
		return nil, File{}, err
	}
	var f *os.File
	if err := a.do(func() (err error) {
		// Without O_NONBLOCK the open itself would wait for a pipe's writer.
		f, err = os.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		return err
	}); err != nil {
		return nil, File{}, err
	}
	info, err := f.Stat()
	if err == nil {
		err = mustBeRegular(p, info)
	}
	if err != nil {
		f.Close()
		return nil, File{}, err
	}
	return f, describe(p, info), nil
}

func mustBeRegular(p string, info os.FileInfo) error {
	switch {
	case info.IsDir():
		return fmt.Errorf("%s: %w", p, ErrIsDirectory)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s: %w", p, ErrNotRegular)
	}
	return nil
}

// Section is a reader of limit bytes of a file from offset on; limit 0 means to its end.
func Section(f *os.File, offset, limit int64) (io.Reader, error) {
	if offset > 0 {
		if _, err := f.Seek(offset, io.SeekStart); err != nil && !errors.Is(err, syscall.ESPIPE) {
			return nil, err
		}
	}
	if limit > 0 {
		return io.LimitReader(f, limit), nil
	}
	return f, nil
}
