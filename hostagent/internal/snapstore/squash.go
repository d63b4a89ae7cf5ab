package snapstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// squash is a second pair of headers of a snapshot; one is nil where the snapshot's own is short enough.
type squash struct {
	memory, disk *snapfmt.Header
	builds       []*build // references held
}

// squashRecord is squash.json.
type squashRecord struct {
	Memory *Object `json:"memory,omitempty"`
	Disk   *Object `json:"disk,omitempty"`
	// Builds that its headers name.
	Builds []Build `json:"builds"`
}

const squashRecordName = "squash.json"

func (q *squash) header(kind buildfmt.Kind) *snapfmt.Header {
	switch {
	case q == nil:
		return nil
	case kind == buildfmt.Memory:
		return q.memory
	}
	return q.disk
}

// parent finds the header that a new generation of a pinned snapshot builds on, and the builds that it names.
func (s *Store) parent(ctx context.Context, b *Snapshot, kind buildfmt.Kind) (*snapfmt.Header, []Build, error) {
	own := b.contents.disk
	if kind == buildfmt.Memory {
		own = b.contents.memory
	}
	if !b.entry.isImage && len(own.header.Builds) >= s.hardChain() && s.squashOf(b.entry).header(kind) == nil {
		// The worker does not keep up, or builds are elsewhere: now it has to be.
		if err := s.squash(ctx, b, true); err != nil {
			s.log.Warn("snapshot could not be squashed", "snapshot_id", b.entry.id, "error", err)
		}
	}
	if q := s.squashOf(b.entry); q.header(kind) != nil {
		h := q.header(kind)
		return h, recordsOf(h, q.builds), nil
	}
	return own.header, recordsOf(own.header, own.builds), nil
}

// hardChain is how many builds a header names at most before its next generation waits for a squash.
func (s *Store) hardChain() int { return min(4*s.conf.MaxChain, snapfmt.MaxBuilds/2) }

func (s *Store) squashOf(e *entry) *squash {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.squash
}

func recordsOf(h *snapfmt.Header, builds []*build) (list []Build) {
	for _, b := range builds {
		if slices.Contains(h.Builds, b.ID) {
			list = append(list, b.Build)
		}
	}
	return list
}

// squash makes the squash of a pinned snapshot, unless there is one or its headers are short. With fetch it brings what it
// needs of builds that are elsewhere, else it leaves snapshots of such builds as they are.
func (s *Store) squash(ctx context.Context, b *Snapshot, fetch bool) (err error) {
	e := b.entry
	leave, err := s.enter(ctx, "squash "+e.id)
	if err != nil {
		return err
	}
	defer leave()
	if s.squashOf(e) != nil {
		return nil
	}
	dir, err := s.tempDir("squash-" + e.id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	files := filepath.Join(dir, squashName)
	if err := os.Mkdir(files, 0o700); err != nil {
		return err
	}
	rec, made := squashRecord{}, []*packed(nil)
	q := &squash{}
	for _, v := range []struct {
		view   *View
		kind   buildfmt.Kind
		name   string
		header **snapfmt.Header
		object **Object
	}{{b.contents.memory, buildfmt.Memory, memoryName, &q.memory, &rec.Memory}, {b.contents.disk, buildfmt.Disk, diskName, &q.disk, &rec.Disk}} {
		if v.view == nil || len(v.view.header.Builds) <= s.conf.MaxChain {
			continue
		}
		keep := largest(v.view.header, max(1, s.conf.MaxChain/4))
		if !fetch && !v.view.wholeBut(keep) {
			continue
		}
		p, h, err := s.squashView(ctx, dir, v.view, v.kind, keep)
		if err != nil {
			return fmt.Errorf("%s: %w", v.view.what, err)
		}
		encoded, err := h.Encode()
		if err != nil {
			return err
		}
		o, err := writeFile(filepath.Join(files, v.name), "", encoded)
		if err != nil {
			return err
		}
		made = append(made, p)
		*v.header, *v.object = h, &o
		rec.Builds = append(rec.Builds, slices.Concat(recordsOf(h, v.view.builds), p.records())...)
	}
	if len(made) == 0 {
		return nil
	}
	return s.keepSquash(ctx, e, q, rec, made, files)
}

// wholeBut tells whether all builds but those to keep are on this host.
func (v *View) wholeBut(keep []bool) bool {
	for i, b := range v.builds {
		if body := b.body.Load(); !keep[i] && (body == nil || !b.local(0, body.reader.Size())) {
			return false
		}
	}
	return true
}

// squashView copies the data of all builds but those to keep into a new build.
func (s *Store) squashView(ctx context.Context, dir string, v *View, kind buildfmt.Kind, keep []bool) (*packed, *snapfmt.Header, error) {
	p, err := s.newPacker(dir, kind)
	if err != nil {
		return nil, nil, err
	}
	defer p.abort()
	buf := make([]byte, packChunk)
	for e := range v.header.Extents(0, v.Size()) {
		if e.Build == 0 || keep[e.Build-1] {
			continue
		}
		for off, end := e.Off, e.Off+e.Len; off < end; {
			part := buf[:min(packChunk, end-off)]
			if _, err := v.ReadAt(ctx, part, off); err != nil {
				return nil, nil, err
			}
			if err := p.put(part, off); err != nil {
				return nil, nil, err
			}
			off += int64(len(part))
		}
	}
	done, err := p.finish()
	if err != nil {
		return nil, nil, err
	}
	h, err := v.header.Remap(done.changes)
	return done, h, err
}

// largest tells which n builds have the most bytes that the header names.
func largest(h *snapfmt.Header, n int) []bool {
	live := h.LiveBytes()
	order := make([]int, len(live))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(min(1, max(-1, live[b]-live[a]))) })
	keep := make([]bool, len(live))
	for _, i := range order[:min(n, len(order))] {
		keep[i] = true
	}
	return keep
}

// keepSquash makes a squash durable.
func (s *Store) keepSquash(ctx context.Context, e *entry, q *squash, rec squashRecord, made []*packed, files string) (err error) {
	if err := writeJSON(filepath.Join(files, squashRecordName), rec); err != nil {
		return err
	}
	s.mu.Lock()
	q.builds = s.name(e.id, rec.Builds)
	s.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(filepath.Join(e.dir, squashName)), s.unname(q.builds, filepath.Dir(files)))
		}
	}()
	names := []string{filepath.Join(files, squashRecordName)}
	if q.memory != nil {
		names = append(names, filepath.Join(files, memoryName))
	}
	if q.disk != nil {
		names = append(names, filepath.Join(files, diskName))
	}
	if err := s.place(ctx, made, files, filepath.Join(e.dir, squashName), names...); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.squash = q
	return nil
}

// readSquash reads the squash that a former agent has left; nil if there is none.
func (s *Store) readSquash(e *entry) (*squash, error) {
	dir := filepath.Join(e.dir, squashName)
	rec := squashRecord{}
	if err := readJSON(filepath.Join(dir, squashRecordName), &rec); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	if err := checkBuilds(rec.Builds); err != nil {
		return nil, err
	}
	q := &squash{}
	for _, h := range []struct {
		object *Object
		name   string
		header **snapfmt.Header
	}{{rec.Memory, memoryName, &q.memory}, {rec.Disk, diskName, &q.disk}} {
		if h.object == nil {
			continue
		}
		data, err := e.readObject(filepath.Join(squashName, h.name), *h.object)
		if err != nil {
			return nil, err
		}
		if *h.header, err = snapfmt.Decode(data); err != nil {
			return nil, e.damaged(filepath.Join(squashName, h.name), err)
		}
	}
	q.builds = s.name(e.id, rec.Builds)
	return q, nil
}
