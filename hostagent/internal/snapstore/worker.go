package snapstore

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// worker does in the background what nobody waits for: squashing, and completing builds that were fetched. One job at a time.
type worker struct {
	store  *Store
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // of 1

	mu   sync.Mutex // guards jobs
	jobs []func(ctx context.Context)
}

func newWorker(s *Store) *worker {
	w := &worker{store: s, wake: make(chan struct{}, 1)}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.wg.Go(w.run)
	return w
}

func (w *worker) stop() {
	w.cancel()
	w.wg.Wait()
}

func (w *worker) add(job func(ctx context.Context)) {
	w.mu.Lock()
	w.jobs = append(w.jobs, job)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) next() func(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.jobs) == 0 {
		return nil
	}
	job := w.jobs[0]
	w.jobs = w.jobs[1:]
	return job
}

func (w *worker) run() {
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-w.wake:
		}
		for job := w.next(); job != nil && w.ctx.Err() == nil; job = w.next() {
			job(w.ctx)
		}
	}
}

// consider has a new snapshot squashed if its headers name too many builds.
func (w *worker) consider(e *entry, headers ...*snapfmt.Header) {
	for _, h := range headers {
		if len(h.Builds) > w.store.conf.MaxChain {
			w.add(func(ctx context.Context) { w.squash(ctx, e.id) })
			return
		}
	}
}

func (w *worker) squash(ctx context.Context, id string) {
	s := w.store
	e := s.pinLocal(id)
	if e == nil {
		return
	}
	b, err := s.openPinned(ctx, e)
	if err == nil {
		err = s.squash(ctx, b, false)
		b.Release()
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("snapshot could not be squashed", "snapshot_id", id, "error", err)
	}
}

// finish has a build that was fetched as a whole made one like any other.
func (s *Store) finish(b *build) {
	s.worker.add(func(context.Context) {
		if err := s.complete(b); err != nil {
			s.log.Warn("a fetched build could not be completed", "build_id", b.ID, "error", err)
		}
	})
}

// finishFound is finish for a build that a former agent has fetched: what it wrote last may be lost, so every frame is looked at first. What is
// missing is fetched when it is read.
func (s *Store) finishFound(b *build) {
	s.worker.add(func(ctx context.Context) {
		body, leave := s.use(b)
		if body == nil {
			return // Whoever opens it next comes here again.
		}
		defer leave()
		for i := range body.reader.Frames() {
			if ctx.Err() != nil {
				return
			}
			if frameWhole(body.reader, body.file, i) {
				continue
			}
			if err := body.part.lose(i); err != nil {
				s.log.Warn("a lost frame cannot be noted", "build_id", b.ID, "frame", i, "error", err)
				return
			}
		}
		if !body.part.whole() {
			return
		}
		if err := s.complete(b); err != nil {
			s.log.Warn("a fetched build could not be completed", "build_id", b.ID, "error", err)
		}
	})
}

func (s *Store) complete(b *build) error {
	path := s.buildPath(b.ID)
	if err := syncPath(path + partSuffix); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.builds[b.ID] != b {
		return nil
	}
	if err := os.Rename(path+partSuffix, path); err != nil {
		return err
	}
	return removeIfThere(path + marksSuffix)
}
