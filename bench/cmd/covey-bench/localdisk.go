package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// objectFiles are the files in which the mesh's registry has objects.
func (e *env) objectFiles(keys []string) ([]string, error) {
	var all []string
	for _, k := range keys {
		// The store adds to a key what makes each upload's file its own.
		files, err := filepath.Glob(filepath.Join(e.m.Dir, "objects", k+"@*"))
		if err != nil || len(files) != 1 {
			return nil, fmt.Errorf("the store has %d files of %s: %w", len(files), k, err)
		}
		all = append(all, files[0])
	}
	return all, nil
}

// forget throws files, which are synced, out of the page cache.
func forget(files []string) error {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// readFiles reads files from the disk one after the other, in pieces as the registry does, and keeps nothing.
func readFiles(files []string) (time.Duration, error) {
	if err := forget(files); err != nil {
		return 0, err
	}
	began := time.Now()
	piece := make([]byte, 1<<20)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return 0, err
		}
		for err == nil {
			_, err = f.Read(piece)
		}
		if e := f.Close(); !errors.Is(err, io.EOF) || e != nil {
			return 0, errors.Join(err, e)
		}
	}
	return time.Since(began), nil
}

// writeAnew writes what files have into one below dir and syncs it; the time is without that of reading them.
func writeAnew(dir string, files []string) (took time.Duration, err error) {
	var all [][]byte
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		all = append(all, b)
	}
	to, err := os.CreateTemp(dir, "bench-")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for _, b := range all {
		if _, err = to.Write(b); err != nil {
			break
		}
	}
	err = errors.Join(err, to.Sync(), to.Close())
	return time.Since(began), errors.Join(err, os.Remove(to.Name()))
}
