package snapstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// Where bytes come from.
const (
	fromZero     = "zero"
	fromLocal    = "local"
	fromPeer     = "peer"
	fromRegistry = "registry"
)

// farther tells which of two sources is the farther one.
func farther(a, b string) string {
	if rank(b) > rank(a) {
		return b
	}
	return a
}

func rank(from string) int {
	switch from {
	case "", fromZero:
		return 0
	case fromLocal:
		return 1
	case fromPeer:
		return 2
	}
	return 3
}

// build is a build that something on this host names.
type build struct {
	Build
	store *Store
	// snapshot is one that names it, where a fetcher may look for hosts that have it.
	snapshot string

	// refs counts the snapshots, images and drafts that name it, users the open ones of those. Both are guarded by Store.mu.
	refs, users int

	mending atomic.Bool // its healing is on the worker's list
	gate    gate        // held while body is made
	body    atomic.Pointer[buildBody]
}

// buildBody is an open build. It stays open as long as it has users.
type buildBody struct {
	file   *os.File
	reader *buildfmt.Reader
	part   *partial // nil where the file is whole
}

func (b *buildBody) close() error {
	err := b.file.Close()
	if b.part != nil {
		err = errors.Join(err, b.part.close())
	}
	return err
}

func (s *Store) buildPath(id snapfmt.ID) string {
	return filepath.Join(s.conf.Dir, "builds", id.String())
}

// open makes the build readable. Its caller is one of the users.
func (b *build) open(ctx context.Context) error {
	if err := b.gate.enter(ctx); err != nil {
		return err
	}
	defer b.gate.leave()
	if b.body.Load() != nil {
		return nil
	}
	body, err := b.openFile(ctx)
	if errors.Is(err, os.ErrNotExist) {
		if b.store.conf.Fetcher == nil {
			return &buildfmt.CorruptError{Build: b.ID, Frame: -1, Problem: "its file is missing"}
		}
		body, err = b.openPartial(ctx)
	}
	healed := false
	if err != nil {
		body, err = b.healBuild(ctx, err)
		healed = err == nil
	}
	if err != nil {
		return err
	}
	if kind := body.reader.Kind().String(); kind != b.Kind {
		return errors.Join(&buildfmt.CorruptError{Build: b.ID, Frame: -1, Problem: fmt.Sprintf("it is of %s, recorded as of %s", kind, b.Kind)}, body.close())
	}
	b.body.Store(body)
	if healed {
		b.store.mend(b)
	}
	if body.part != nil && body.part.whole() {
		// A former agent ended before it was completed, or all of it was healed.
		b.store.finishFound(b)
	}
	return nil
}

func (b *build) openFile(ctx context.Context) (_ *buildBody, err error) {
	f, err := os.Open(b.store.buildPath(b.ID))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != b.Data.Size {
		return nil, &buildfmt.CorruptError{Build: b.ID, Frame: -1, Problem: fmt.Sprintf("its file has %d bytes, must have %d", st.Size(), b.Data.Size)}
	}
	r, err := buildfmt.Open(ctx, buildfmt.File(f), st.Size(), b.ID)
	if err != nil {
		return nil, err
	}
	return &buildBody{file: f, reader: r}, nil
}

// reopen looks whether the file of a damaged build was replaced, and takes the new one.
func (b *build) reopen(ctx context.Context, old *buildBody) (*buildBody, error) {
	if err := b.gate.enter(ctx); err != nil {
		return nil, err
	}
	defer b.gate.leave()
	if now := b.body.Load(); now != old || b.sameFile(old) {
		return now, nil
	}
	body, err := b.openFile(ctx)
	if err != nil {
		return nil, err
	}
	// The old one may be in use; its file is closed when nothing refers to it any more.
	b.body.Store(body)
	return body, nil
}

// sameFile tells that the file that is open is the one that has the build's name now.
func (b *build) sameFile(body *buildBody) bool {
	is, err := body.file.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(b.store.buildPath(b.ID))
	return err == nil && os.SameFile(is, now)
}

// close ends the use of the file. The build has no users any more.
func (b *build) close() error {
	body := b.body.Swap(nil)
	b.store.frames.drop(b.ID)
	if body == nil {
		return nil
	}
	return body.close()
}

func (b *build) opened() (*buildBody, error) {
	body := b.body.Load()
	if body == nil {
		return nil, fmt.Errorf("build %s is read after its snapshot was released", b.ID)
	}
	return body, nil
}

// readAt fills p from the build's bytes at off.
func (b *build) readAt(ctx context.Context, p []byte, off int64) (from string, err error) {
	body, err := b.opened()
	if err != nil {
		return "", err
	}
	r := body.reader
	if off < 0 || off > r.Size() || int64(len(p)) > r.Size()-off {
		return "", &buildfmt.CorruptError{Build: b.ID, Frame: -1, Problem: fmt.Sprintf("it has %d bytes; a header names %d at %d", r.Size(), len(p), off)}
	}
	for len(p) > 0 {
		i, skip := int(off/r.FrameSize()), int(off%r.FrameSize())
		n := min(len(p), r.Frame(i).Len-skip)
		f, err := b.readPart(ctx, body, i, skip, p[:n])
		if err != nil {
			return "", err
		}
		from = farther(from, f)
		p, off = p[n:], off+int64(n)
	}
	return from, nil
}

// readPart fills p from frame i at skip.
func (b *build) readPart(ctx context.Context, body *buildBody, i, skip int, p []byte) (from string, err error) {
	key, length := frameKey{b.ID, i}, body.reader.Frame(i).Len
	if len(p) == length {
		if data, ok := b.store.frames.has(key); ok {
			copy(p, data)
			return fromLocal, nil
		}
		return b.readFrame(ctx, body, i, p)
	}
	data, from, err := b.store.frames.get(ctx, key, func() ([]byte, string, error) {
		data := make([]byte, length)
		from, err := b.readFrame(ctx, body, i, data)
		return data, from, err
	})
	copy(p, data[min(skip, len(data)):])
	return from, err
}

// readFrame reads frame i into dst from the disk, or from elsewhere. What is damaged on the disk is healed if that is possible.
func (b *build) readFrame(ctx context.Context, body *buildBody, i int, dst []byte) (from string, err error) {
	if body.part != nil {
		return body.part.readFrame(ctx, body.reader, i, dst)
	}
	_, err = body.reader.ReadFrame(ctx, i, dst)
	if !damagedHere(err) {
		return fromLocal, err
	}
	again, e := b.reopen(ctx, body)
	if e != nil {
		return "", err
	}
	if _, err = again.reader.ReadFrame(ctx, i, dst); !damagedHere(err) {
		return fromLocal, err
	}
	if err = b.healFrames(ctx, again, i, err); err != nil {
		return "", err
	}
	b.store.mend(b)
	_, err = again.reader.ReadFrame(ctx, i, dst)
	return fromRegistry, err
}

// local tells whether a range is on this host's disk.
func (b *build) local(off, length int64) bool {
	body := b.body.Load()
	if body == nil {
		return false
	}
	return body.part == nil || body.part.hasAll(body.reader, off, length)
}

// gate is a mutex that can be given up waiting for. It is made by newGate.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) enter(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	default:
	}
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g gate) leave() { <-g }
