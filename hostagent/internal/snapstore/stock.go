package snapstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/image"
	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// imageInfo is a name that the catalog has for a content, and the file that has it.
type imageInfo struct {
	Name  string      `json:"name"`
	Stamp image.Stamp `json:"stamp"`
}

// imageRecord is image.json. Of its Record only the fields of the disk are used.
type imageRecord struct {
	imageInfo
	// Also are further names of the same content.
	Also   []imageInfo `json:"also,omitempty"`
	Record Record      `json:"record"`
}

// infos are all names.
func (r imageRecord) infos() []imageInfo { return append([]imageInfo{r.imageInfo}, r.Also...) }

// without are the names of a content but one. mu is held.
func (e *entry) without(name string) []imageInfo {
	return slices.DeleteFunc(slices.Clone(e.images), func(i imageInfo) bool { return i.Name == name })
}

const imageName = "image.json"

// imageID is what image.File.Walk returns.
var imageID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// OpenImage pins a stock image, by name or by id. An image that this host has not used before is converted first, which takes
// some seconds. machine.ErrImageNotFound.
func (s *Store) OpenImage(ctx context.Context, name string) (machine.Base, error) {
	b, err := s.OpenStock(ctx, name)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// OpenStock is OpenImage, with the type that has the view.
func (s *Store) OpenStock(ctx context.Context, name string) (*Snapshot, error) {
	if imageID.MatchString(name) {
		return s.openContent(ctx, name)
	}
	if s.conf.Images == nil {
		return nil, fmt.Errorf("%w: %.100q; this host has none", machine.ErrImageNotFound, name)
	}
	img, err := s.conf.Images.Find(name)
	if errors.Is(err, image.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", machine.ErrImageNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	e, err := s.stock(ctx, img)
	if err != nil {
		return nil, err
	}
	b, err := s.openPinned(ctx, e)
	if errors.Is(err, machine.ErrDamaged) {
		s.log.Error("a converted image is damaged and is converted again", "image", name, "image_id", e.id, "error", err)
		if e, err = s.convertNow(ctx, img); err == nil {
			b, err = s.openPinned(ctx, e)
		}
	}
	return b, err
}

// openContent opens an image by its id. What was converted of it may be damaged, or so much that it is gone, while a sandbox is of it: then what
// the catalog has is converted again, if it is the same still.
func (s *Store) openContent(ctx context.Context, id string) (*Snapshot, error) {
	err := fmt.Errorf("%w: this host has none with id %s", machine.ErrImageNotFound, id)
	if e := s.pinImage(func(e *entry) bool { return e.id == id }); e != nil {
		b, openErr := s.openPinned(ctx, e)
		if !errors.Is(openErr, machine.ErrDamaged) {
			return b, openErr
		}
		err = openErr
	}
	if s.conf.Images == nil {
		return nil, err
	}
	names, namesErr := s.conf.Images.Names()
	if namesErr != nil {
		return nil, errors.Join(err, namesErr)
	}
	for _, name := range names {
		b, e := s.OpenStock(ctx, name)
		switch {
		case e != nil:
			err = errors.Join(err, e)
		case b.entry.id == id:
			return b, nil
		default:
			b.Release()
		}
	}
	return nil, err
}

// PrepareImages converts all images that were not used yet, so that no sandbox has to wait for it, and removes those that are not in the catalog
// any more and that nobody has pinned. So it is called once what a former agent had is taken back.
func (s *Store) PrepareImages(ctx context.Context) error {
	if s.conf.Images == nil {
		return nil
	}
	names, err := s.conf.Images.Names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		b, err := s.OpenStock(ctx, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.retire(b.entry, name)
		b.Release()
	}
	s.retireUnnamed(names)
	return errors.Join(errs...)
}

func (s *Store) pinImage(is func(*entry) bool) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.images {
		if !e.doomed && is(e) {
			e.pins++
			return e
		}
	}
	return nil
}

// stock pins the entry of an image, which is made if need be. Of those who want it at the same time one makes it.
func (s *Store) stock(ctx context.Context, img image.Image) (*entry, error) {
	same := func(e *entry) bool { return slices.Contains(e.images, imageInfo{img.Name, img.Stamp}) }
	if e := s.pinImage(same); e != nil {
		return e, nil
	}
	leave, err := s.enter(ctx, "image "+img.Name)
	if err != nil {
		return nil, err
	}
	defer leave()
	if e := s.pinImage(same); e != nil {
		return e, nil
	}
	return s.convertEntered(ctx, img)
}

// convertNow converts an image and pins it, whatever there is of it. Of one that is damaged all files are replaced.
func (s *Store) convertNow(ctx context.Context, img image.Image) (*entry, error) {
	leave, err := s.enter(ctx, "image "+img.Name)
	if err != nil {
		return nil, err
	}
	defer leave()
	return s.convertEntered(ctx, img)
}

func (s *Store) convertEntered(ctx context.Context, img image.Image) (*entry, error) {
	e, err := s.convert(ctx, img)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", img.Name, err)
	}
	s.retire(e, img.Name)
	return e, nil
}

// convert makes a build and a header of an image.
func (s *Store) convert(ctx context.Context, img image.Image) (*entry, error) {
	began := time.Now()
	f, err := img.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dir, err := s.tempDir("image-" + img.Name)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	p, err := s.newPacker(dir, buildfmt.Disk)
	if err != nil {
		return nil, err
	}
	defer p.abort()
	id, err := f.Walk(ctx, p.put)
	if err != nil {
		return nil, err
	}
	made, err := p.finish()
	if err != nil {
		return nil, err
	}
	empty, err := snapfmt.New(img.DiskBytes, BlockSize)
	if err != nil {
		return nil, err
	}
	h, err := empty.Merge(made.id(), made.changes)
	if err != nil {
		return nil, err
	}
	if e := s.revive(id); e != nil {
		if err := s.rewrite(ctx, e, img, h, made); err != nil {
			s.unpin(e)
			return nil, err
		}
		return e, nil
	}
	rec := imageRecord{imageInfo: imageInfo{img.Name, img.Stamp}, Record: Record{
		Manifest: machine.Manifest{Image: img.Name, ImageID: id, DiskBytes: img.DiskBytes, DiskBuilds: idStrings(h.Builds), CreateTime: time.Now()},
		Builds:   made.records(),
	}}
	e, err := s.admitImage(ctx, dir, id, rec, h, made)
	if err == nil {
		s.log.Info("image converted", "image", img.Name, "image_id", id, "disk_bytes", img.DiskBytes, "build_bytes", made.info.Size,
			"stored_bytes", made.info.Stored, "took", time.Since(began))
	}
	return e, err
}

// admitImage moves an image's files into place, durably, and pins the new entry.
func (s *Store) admitImage(ctx context.Context, dir, id string, rec imageRecord, h *snapfmt.Header, made *packed) (_ *entry, err error) {
	e := &entry{id: id, dir: s.path("images", id), isImage: true, gate: newGate(), images: rec.infos(), pins: 1}
	encoded, err := h.Encode()
	if err != nil {
		return nil, err
	}
	files := filepath.Join(dir, "entry")
	if err := os.Mkdir(files, 0o700); err != nil {
		return nil, err
	}
	if rec.Record.DiskHeader, err = writeFile(filepath.Join(files, diskName), "", encoded); err != nil {
		return nil, err
	}
	e.record = &rec.Record
	if err := writeJSON(filepath.Join(files, imageName), rec); err != nil {
		return nil, err
	}
	s.mu.Lock()
	e.builds = s.name("", rec.Record.Builds)
	s.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(e.dir), s.unname(e.builds, dir))
		}
	}()
	if err := s.place(ctx, []*packed{made}, files, e.dir, filepath.Join(files, diskName), filepath.Join(files, imageName)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.images[id] = e
	s.mu.Unlock()
	return e, nil
}

// revive pins an image of this content, though it was to be removed: what was rolled back is the image again.
func (s *Store) revive(id string) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[id]
	if e != nil {
		e.doomed = false
		e.pins++
	}
	return e
}

// rewrite is for an image that was converted before and is found in a file that looks new or under another name, or is damaged: its files are
// replaced by the same ones, while others may read them.
func (s *Store) rewrite(ctx context.Context, e *entry, img image.Image, h *snapfmt.Header, made *packed) error {
	s.mu.Lock()
	rec := imageRecord{imageInfo: imageInfo{img.Name, img.Stamp}, Also: e.without(img.Name), Record: *e.record}
	s.mu.Unlock()
	encoded, err := h.Encode()
	if err != nil {
		return err
	}
	// Another release may pack the same content otherwise; then there is nothing to replace the files by.
	if objectOf(encoded) == rec.Record.DiskHeader {
		if err := s.replaceImage(ctx, e, encoded, made); err != nil {
			return err
		}
	}
	sealed, err := sealJSON(rec)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(e.dir, imageName), sealed); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.images, e.doomed = rec.infos(), false // Meanwhile it may have had no name.
	return nil
}

func (s *Store) replaceImage(ctx context.Context, e *entry, header []byte, made *packed) error {
	if made.info.Stored > 0 {
		if err := syncAll(ctx, made.path); err != nil {
			return err
		}
		if err := os.Rename(made.path, s.buildPath(made.info.ID)); err != nil {
			return err
		}
	}
	return errors.Join(syncPath(s.path("builds")), replaceFile(filepath.Join(e.dir, diskName), header))
}

// retire takes a name from what had it before now, and removes what has none left, as soon as nobody has it pinned.
func (s *Store) retire(now *entry, name string) {
	s.removeUnnamed(func(e *entry) {
		if e != now {
			e.images = e.without(name)
		}
	})
}

// retireUnnamed is retire for names that the catalog does not have any more.
func (s *Store) retireUnnamed(names []string) {
	s.removeUnnamed(func(e *entry) {
		e.images = slices.DeleteFunc(slices.Clone(e.images), func(i imageInfo) bool { return !slices.Contains(names, i.Name) })
	})
}

// removeUnnamed lets rename change the names of each image, with mu held, and removes those without any.
func (s *Store) removeUnnamed(rename func(*entry)) {
	var idle []*entry
	s.mu.Lock()
	for _, e := range s.images {
		rename(e)
		if !e.doomed && len(e.images) == 0 {
			e.doomed = true
			if e.pins == 0 {
				idle = append(idle, e)
			}
		}
	}
	s.mu.Unlock()
	for _, e := range idle {
		if err := s.remove(e); err != nil {
			s.log.Warn("a former image could not be removed", "image_id", e.id, "error", err)
		}
	}
}

// scanImages takes over the images that a former agent has converted. What cannot be read is removed: it can be made again.
func (s *Store) scanImages() error {
	dirs, err := os.ReadDir(s.path("images"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		dir := s.path("images", d.Name())
		rec := imageRecord{}
		err := readJSON(filepath.Join(dir, imageName), &rec)
		if err == nil {
			err = checkBuilds(rec.Record.Builds)
		}
		if err != nil || rec.Record.Manifest.ImageID != d.Name() {
			s.log.Warn("a converted image cannot be read and is removed", "image_id", d.Name(), "error", err)
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		s.images[d.Name()] = &entry{
			id: d.Name(), dir: dir, isImage: true, gate: newGate(), record: &rec.Record, images: rec.infos(), builds: s.name("", rec.Record.Builds),
		}
	}
	return nil
}

func idStrings(ids []snapfmt.ID) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = id.String()
	}
	return list
}
