package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/snapshotsvc/registry"
)

// partSuffix marks files of uploads that are not whole. Paths do not end with it.
const partSuffix = ".part"

// Directory implements registry.Store in a directory of its own. What Finish has returned for survives a crash of the machine.
type Directory struct {
	dir string
}

var _ registry.Store = (*Directory)(nil)

// NewDirectory makes the directory if need be.
func NewDirectory(dir string) (*Directory, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("object directory: must be an absolute path, got %q", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("object directory: %w", err)
	}
	return &Directory{dir: dir}, nil
}

func (d *Directory) file(path string) string { return filepath.Join(d.dir, filepath.FromSlash(path)) }

// Begin implements registry.Store.
func (d *Directory) Begin(_ context.Context, path string, size int64, sum [32]byte) (_ registry.StoreUpload, err error) {
	u := &fileUpload{name: d.file(path), size: size, sum: sum, hash: sha256.New()}
	switch info, err := os.Stat(u.name); {
	case err == nil && info.Size() == size:
		u.off, u.whole = size, true
		return u, nil
	case err == nil:
		return nil, fmt.Errorf("%s has %d bytes, not %d", path, info.Size(), size)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if u.f, err = d.openPart(u.name + partSuffix); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.f.Close())
		}
	}()
	if err := unix.Flock(int(u.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%s is being written by another process: %w", path, err)
	}
	return u, u.catchUp()
}

// openPart makes the part's directory too, again where a deletion removed it as empty meanwhile.
func (d *Directory) openPart(name string) (f *os.File, err error) {
	for range 10 {
		if err = d.makeParents(filepath.Dir(name)); err == nil {
			f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return nil, err
}

// makeParents makes directories and syncs what they are in, so that they survive a crash with what is put into them.
func (d *Directory) makeParents(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if dir != d.dir {
		if err := d.makeParents(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Stat implements registry.Store.
func (d *Directory) Stat(_ context.Context, path string) (int64, error) {
	info, err := os.Stat(d.file(path))
	if err != nil {
		return 0, absent(err)
	}
	return info.Size(), nil
}

func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", registry.ErrAbsent, err)
	}
	return err
}

// Read implements registry.Store.
func (d *Directory) Read(_ context.Context, path string, off, length int64) (io.ReadCloser, error) {
	f, err := os.Open(d.file(path))
	if err != nil {
		return nil, absent(err)
	}
	// A file that was cut short lacks these bytes as one that is gone does: to try again does not help.
	switch info, err := f.Stat(); {
	case err != nil:
		return nil, errors.Join(err, f.Close())
	case info.Size() < off+length:
		return nil, errors.Join(fmt.Errorf("%w: %s has %d bytes, not the %d at %d", registry.ErrAbsent, path, info.Size(), length, off), f.Close())
	}
	return section{io.NewSectionReader(f, off, length), f}, nil
}

type section struct {
	io.Reader
	io.Closer
}

// Delete implements registry.Store.
func (d *Directory) Delete(_ context.Context, path string) error {
	name := d.file(path)
	removed := false
	for _, n := range []string{name, name + partSuffix} {
		switch err := os.Remove(n); {
		case err == nil:
			removed = true
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	if !removed {
		return nil
	}
	// Directories that have become empty go too; one that is not is an error that means nothing.
	for dir := filepath.Dir(name); dir != d.dir; dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			break
		}
	}
	return nil
}

// Walk implements registry.Store.
func (d *Directory) Walk(ctx context.Context, fn func(string) error) error {
	return filepath.WalkDir(d.dir, func(name string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist): // Deleted meanwhile.
			return nil
		case err != nil:
			return err
		case e.IsDir():
			return nil
		}
		rel, err := filepath.Rel(d.dir, name)
		if err != nil {
			return err
		}
		return fn(strings.TrimSuffix(filepath.ToSlash(rel), partSuffix))
	})
}

// fileUpload implements registry.StoreUpload.
type fileUpload struct {
	name string
	size int64
	sum  [32]byte
	f    *os.File
	// off bytes are written, and hashed.
	off  int64
	hash hash.Hash
	// whole: the object is in its place, nothing is open.
	whole bool
}

// catchUp hashes what an earlier try has left.
func (u *fileUpload) catchUp() error {
	n, err := io.Copy(u.hash, io.LimitReader(u.f, u.size))
	if err != nil {
		return err
	}
	u.off = n
	return u.f.Truncate(n)
}

func (u *fileUpload) Offset() int64 { return u.off }

func (u *fileUpload) Write(_ context.Context, p []byte) error {
	n, err := u.f.WriteAt(p, u.off)
	u.hash.Write(p[:n])
	u.off += int64(n)
	return err
}

func (u *fileUpload) Finish(context.Context) error {
	if u.whole {
		return nil
	}
	part := u.name + partSuffix
	if [32]byte(u.hash.Sum(nil)) != u.sum {
		return errors.Join(registry.ErrDamaged, os.Remove(part))
	}
	if err := u.f.Sync(); err != nil {
		return err
	}
	// The name must still be that of the file that was written: a deletion may have come in between.
	if err := u.stillNamed(part); err != nil {
		return err
	}
	if err := os.Rename(part, u.name); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(u.name)); err != nil {
		return err
	}
	u.whole = true
	return nil
}

func (u *fileUpload) stillNamed(part string) error {
	mine, err := u.f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(part)
	if err != nil {
		return absent(err)
	}
	if !os.SameFile(mine, there) {
		return fmt.Errorf("%s was replaced during its upload", part)
	}
	return nil
}

func (u *fileUpload) Close() error {
	if u.f == nil {
		return nil
	}
	return u.f.Close()
}
