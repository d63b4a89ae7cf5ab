package snapstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// writeFile writes a new file, which is not synced, and describes it.
func writeFile(path, key string, data []byte) (Object, error) {
	err := os.WriteFile(path, data, 0o600)
	return Object{Key: key, Size: int64(len(data)), SHA256: sha256.Sum256(data)}, err
}

func objectOf(data []byte) Object { return Object{Size: int64(len(data)), SHA256: sha256.Sum256(data)} }

// hashFile describes a file. It has at most so many bytes.
func hashFile(ctx context.Context, path, key string, most int64) (Object, error) {
	f, err := os.Open(path)
	if err != nil {
		return Object{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(readerOf(ctx, f), most+1))
	if err == nil && n > most {
		err = errors.New("it is too long")
	}
	return Object{Key: key, Size: n, SHA256: Sum(h.Sum(nil))}, err
}

// readerOf reads until ctx ends.
func readerOf(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if err := context.Cause(ctx); err != nil {
			return 0, err
		}
		return r.Read(p)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// syncAll syncs files and directories at the same time, because the file system then writes its journal once for all.
func syncAll(ctx context.Context, paths ...string) error {
	g, _ := errgroup.WithContext(ctx)
	for _, p := range paths {
		g.Go(func() error { return syncPath(p) })
	}
	return g.Wait()
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// behind is how much is written before the kernel is asked to begin writing it to the disk, bytes.
const behind = 2 << 20

// spooler writes to a file and has the kernel write along, so that little is left to do when it is synced.
type spooler struct {
	f        *os.File
	off      int64
	launched int64
}

func (s *spooler) Write(p []byte) (int, error) {
	n, err := s.f.Write(p)
	s.off += int64(n)
	if err == nil && s.off-s.launched >= behind {
		// Only a hint: what it misses the sync does.
		_ = unix.SyncFileRange(int(s.f.Fd()), s.launched, s.off-s.launched, unix.SYNC_FILE_RANGE_WRITE)
		s.launched = s.off
	}
	return n, err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
