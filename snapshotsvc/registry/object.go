package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Read opens a range of a stored object; length 0 means to its end. The reader gives exactly the returned number of bytes.
func (s *Service) Read(ctx context.Context, tenant, key string, off, length int64) (io.ReadCloser, int64, error) {
	if !objectKey.MatchString(key) {
		return nil, 0, Field("key", "must be like \"builds/<id>\", got %q", clip(key))
	}
	if off < 0 || length < 0 {
		return nil, 0, Field("offset", "and length must not be negative, got %d and %d", off, length)
	}
	o, err := s.index.Object(ctx, tenant, key)
	if err != nil {
		return nil, 0, err
	}
	if !o.Stored {
		return nil, 0, NoObject(key)
	}
	if off > o.Size || length > o.Size-off {
		return nil, 0, &Error{
			Kind: OutOfRange, Reason: "OUT_OF_RANGE", Message: fmt.Sprintf("object %s has %d bytes; %d at %d are beyond its end", key, o.Size, length, off),
			Meta: map[string]string{"key": key},
		}
	}
	if length == 0 {
		length = o.Size - off
	}
	r, err := s.store.Read(ctx, o.Path, off, length)
	if errors.Is(err, ErrAbsent) {
		return nil, 0, s.lost(ctx, tenant, o)
	}
	if err != nil {
		return nil, 0, unavailable(err)
	}
	return r, length, nil
}

// lost is the error for an object whose bytes were not found: it was deleted meanwhile, or they are gone.
func (s *Service) lost(ctx context.Context, tenant string, o StoredObject) error {
	now, err := s.index.Object(ctx, tenant, o.Key)
	if err != nil {
		return err
	}
	if now.Path != o.Path {
		return NoObject(o.Key)
	}
	s.log.ErrorContext(ctx, "a stored object is not there any more", "key", o.Key, "path", o.Path, "size_bytes", o.Size)
	return &Error{
		Kind: DataLoss, Reason: "OBJECT_LOST", Message: "the bytes of object " + o.Key + " are not in the store any more", Meta: map[string]string{"key": o.Key},
	}
}

// Upload is one try to bring an object into the registry. Write and Close may be called from different goroutines.
type Upload struct {
	s    *Service
	key  string
	path string
	size int64
	// moved is when it last went on, Unix nanoseconds, or 0 while it does; done is closed when it ends.
	moved atomic.Int64
	done  chan struct{}

	mu sync.Mutex // guards all below
	up StoreUpload
	// complete tells that the object is stored.
	complete bool
	// closed is why nothing can be written any more.
	closed error
}

var errUploadClosed = errors.New("the upload is closed")

// uploadIdle is how long an upload may stand still before a newer one of the same object takes over.
const uploadIdle = 2 * time.Second

// Upload begins or continues the upload of an object that a snapshot names. It must be closed. Where one of the same object is under way
// and goes on, it waits for the end of that, and often finds the object complete then. One that stands still is taken over from: its next
// write is Aborted.
func (s *Service) Upload(ctx context.Context, tenant, snapshotID string, want Object) (*Upload, error) {
	if err := checkID("snapshot_id", snapshotID); err != nil {
		return nil, err
	}
	if err := want.check("object"); err != nil {
		return nil, err
	}
	o, err := s.named(ctx, tenant, snapshotID, want)
	if err != nil {
		return nil, err
	}
	u := &Upload{s: s, key: o.Key, path: o.Path, size: o.Size, done: make(chan struct{})}
	if !o.Stored {
		waited, err := s.takeOver(ctx, u)
		if err != nil {
			return nil, err
		}
		if waited {
			if o, err = s.named(ctx, tenant, snapshotID, want); err == nil && o.Path != u.path {
				err = NoObject(u.key)
			}
		}
		if err != nil || o.Stored {
			u.end(errUploadClosed)
		}
		if err != nil {
			return nil, err
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if o.Stored {
		u.complete, u.closed = true, errUploadClosed
		return u, nil
	}
	if u.closed != nil {
		return nil, u.closed
	}
	if u.up, err = s.store.Begin(ctx, o.Path, o.Size, [32]byte(want.SHA256)); err != nil {
		u.endLocked(errUploadClosed)
		return nil, unavailable(err)
	}
	if u.up.Offset() == o.Size {
		if err := u.finishLocked(ctx); err != nil {
			u.endLocked(errUploadClosed)
			return nil, err
		}
	}
	return u, nil
}

// named finds an object among what the snapshot names.
func (s *Service) named(ctx context.Context, tenant, snapshotID string, want Object) (StoredObject, error) {
	objects, err := s.index.Objects(ctx, tenant, snapshotID)
	if err != nil {
		return StoredObject{}, err
	}
	for _, o := range objects {
		if o.Key != want.Key {
			continue
		}
		if o.Size != want.Size || !bytes.Equal(o.SHA256, want.SHA256) {
			return o, Field("object", "%s is registered with %d bytes and SHA-256 %x, got %d and %x", o.Key, o.Size, o.SHA256, want.Size, want.SHA256)
		}
		return o, nil
	}
	return StoredObject{}, Field("object.key", "%q is not named by snapshot %s", want.Key, snapshotID)
}

// takeOver makes u the upload of its path, once there is none that goes on, and tells whether it had to wait for one.
func (s *Service) takeOver(ctx context.Context, u *Upload) (waited bool, err error) {
	for ; ; waited = true {
		s.mu.Lock()
		old := s.uploads[u.path]
		wait := old.stillFor()
		if wait <= 0 {
			u.moved.Store(time.Now().UnixNano())
			s.uploads[u.path] = u
		}
		s.mu.Unlock()
		if wait <= 0 && old != nil {
			old.end(&Error{
				Kind: Aborted, Reason: "UPLOAD_TAKEN_OVER", Message: "this upload of object " + u.key + " stood still, and a newer one took over",
				Meta: map[string]string{"key": u.key},
			})
		}
		if wait <= 0 {
			return waited, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-old.done:
		case <-timer.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
		timer.Stop()
		if err != nil {
			return true, err
		}
	}
}

// stillFor is how long an upload may still stand still before it is taken over from. There may be none.
func (u *Upload) stillFor() time.Duration {
	if u == nil {
		return 0
	}
	moved := u.moved.Load()
	if moved == 0 {
		return uploadIdle
	}
	return uploadIdle - time.Since(time.Unix(0, moved))
}

// State tells how many bytes there are and whether the object is whole and checked.
func (u *Upload) State() (offset int64, complete bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.complete || u.up == nil {
		return u.size, u.complete
	}
	return u.up.Offset(), false
}

// Write takes the bytes at an offset, which must follow what is there. With the last byte the object is checked and appears;
// DataLoss where its checksum is wrong, and then nothing of it is kept.
func (u *Upload) Write(ctx context.Context, off int64, p []byte) (complete bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.moved.Store(0)
	defer func() { u.moved.Store(time.Now().UnixNano()) }()
	switch {
	case u.complete && len(p) > 0:
		return true, Field("data", "goes beyond the object's %d bytes", u.size)
	case u.complete:
		return true, nil
	case u.closed != nil:
		return false, u.closed
	}
	at := u.up.Offset()
	if off != at {
		return false, Field("offset", "must be %d, which is what is stored, got %d", at, off)
	}
	if int64(len(p)) > u.size-at {
		return false, Field("data", "goes beyond the object's %d bytes: %d at %d", u.size, len(p), at)
	}
	if err := u.up.Write(ctx, p); err != nil {
		return false, u.failure(ctx, err)
	}
	if u.up.Offset() < u.size {
		return false, nil
	}
	err = u.finishLocked(ctx)
	return err == nil, err
}

func (u *Upload) finishLocked(ctx context.Context) error {
	if err := u.up.Finish(ctx); err != nil {
		return u.failure(ctx, err)
	}
	there, err := u.s.index.SetStored(ctx, u.path, true)
	if err != nil {
		return err
	}
	if !there {
		if err := u.s.index.Discard(ctx, u.path); err != nil {
			u.s.log.WarnContext(ctx, "the bytes of an object that was deleted during its upload are left for the sweep", "path", u.path, "error", err)
		}
		return NoObject(u.key)
	}
	u.complete = true
	return nil
}

// failure is the error for a store that failed: the bytes were wrong, the object was deleted meanwhile, or the store is ill.
func (u *Upload) failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, ErrDamaged) {
		u.s.log.WarnContext(ctx, "an uploaded object has a wrong checksum", "key", u.key, "size_bytes", u.size)
		return &Error{
			Kind: DataLoss, Reason: "CHECKSUM_MISMATCH", Message: "the bytes of object " + u.key + " do not have the SHA-256 that was promised; nothing of them was kept",
			Meta: map[string]string{"key": u.key},
		}
	}
	if _, e := u.s.index.Object(ctx, "", u.key); errors.Is(e, NotFound) {
		return NoObject(u.key)
	}
	return unavailable(err)
}

// Close ends the try; what is stored stays for the next.
func (u *Upload) Close() { u.end(errUploadClosed) }

func (u *Upload) end(why error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.endLocked(why)
}

func (u *Upload) endLocked(why error) {
	u.s.mu.Lock()
	if u.s.uploads[u.path] == u {
		delete(u.s.uploads, u.path)
	}
	u.s.mu.Unlock()
	if u.closed != nil {
		return
	}
	u.closed = why
	close(u.done)
	if u.up == nil {
		return
	}
	if err := u.up.Close(); err != nil {
		u.s.log.Warn("an upload could not be closed", "path", u.path, "error", err)
	}
}
