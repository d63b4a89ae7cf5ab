package pager

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// Range is a part of a memory that has changed: all zeros, or data.
type Range struct {
	Off, Len int64
	Zero     bool
}

// Draft is the page-cache file of a snapshot in the making: it takes the dirty pages, and becomes the snapshot's image on this host.
// It is safe for concurrent use, but for writing.
type Draft struct {
	cache *Cache
	key   string
	size  int64
	// file is the draft's own descriptor, which stays when the image is evicted.
	file *os.File

	mu    sync.Mutex
	pages *pageFile // guarded by mu; nil once committed or aborted
	data  *bitmap   // pages that have been written and are not zeros
	zero  *bitmap   // pages that have been written and are zeros
}

// BeginDraft makes the file of a new snapshot, whose id is the key. It ends with Commit or Abort.
func (c *Cache) BeginDraft(key string, size int64) (*Draft, error) {
	if err := checkKey("key", key); err != nil {
		return nil, err
	}
	if size <= 0 || size%PageSize != 0 {
		return nil, fmt.Errorf("pager: the size of %s must be a positive multiple of %d, got %d", key, PageSize, size)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if c.files[key] != nil {
		return nil, fmt.Errorf("pager: image %s: %w", key, ErrInUse)
	}
	path := filepath.Join(c.conf.Dir, key+draftSuffix)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("pager: draft: %w", err)
	}
	pages, err := openPageFile(path, key, size, c.conf.Around, &c.bytes)
	if err != nil {
		file.Close()
		os.Remove(path)
		return nil, err
	}
	n := size / PageSize
	return &Draft{cache: c, key: key, size: size, file: file, pages: pages, data: newBitmap(n), zero: newBitmap(n)}, nil
}

// WriteDirty takes whole pages at off. Pages of zeros are remembered and take no space. Of a page written twice, the last counts.
func (d *Draft) WriteDirty(p []byte, off int64) error {
	if off < 0 || off%PageSize != 0 || len(p)%PageSize != 0 || off+int64(len(p)) > d.size {
		return fmt.Errorf("pager: draft %s: %d bytes at %#x are not whole pages of it", d.key, len(p), off)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pages == nil {
		return fmt.Errorf("pager: draft %s: %w", d.key, ErrClosed)
	}
	for len(p) > 0 {
		zero := isZero(p[:PageSize])
		n := PageSize
		for n < len(p) && isZero(p[n:n+PageSize]) == zero {
			n += PageSize
		}
		if err := d.write(p[:n], off, zero); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (d *Draft) write(p []byte, off int64, zero bool) error {
	first, end := off/PageSize, (off+int64(len(p)))/PageSize
	if !zero {
		for n := first; n < end; n++ {
			d.zero.remove(n)
		}
		d.data.addRange(first, end)
		return d.pages.put(p, off)
	}
	for n := first; n < end; n++ {
		if d.data.remove(n) {
			if err := d.pages.punch(n * PageSize); err != nil {
				return err
			}
		}
	}
	d.zero.addRange(first, end)
	return nil
}

// Ranges lists what has been written, ascending; neighbours of a kind are joined. It may be called after Commit.
func (d *Draft) Ranges() []Range {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Range
	for n, last := int64(0), d.size/PageSize; n < last; {
		isData, dataEnd := d.data.run(n, last)
		isZero, zeroEnd := d.zero.run(n, last)
		end := dataEnd
		switch {
		case isZero:
			end = zeroEnd
		case !isData:
			end = min(dataEnd, zeroEnd)
		}
		if isData || isZero {
			out = append(out, Range{Off: n * PageSize, Len: (end - n) * PageSize, Zero: isZero})
		}
		n = end
	}
	return out
}

// ReadAt reads what was written. It may be called after Commit, until Close. What was not written is not to be read: it is zeros
// before Commit, and anything later.
func (d *Draft) ReadAt(p []byte, off int64) (int, error) { return d.file.ReadAt(p, off) }

// Commit makes the file the image of the snapshot: from now on Open finds it, with all that was written in place. What was not
// comes from the source that Open is given, whose size must be that of src.
func (d *Draft) Commit(src Source) error {
	if src != nil && src.Size() != d.size {
		return fmt.Errorf("pager: draft %s: the source is of %d bytes, not %d", d.key, src.Size(), d.size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pages == nil {
		return fmt.Errorf("pager: draft %s: %w", d.key, ErrClosed)
	}
	c := d.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.files[d.key] != nil {
		return fmt.Errorf("pager: image %s: %w", d.key, ErrInUse)
	}
	path := filepath.Join(c.conf.Dir, d.key+imageSuffix)
	if err := os.Rename(d.pages.path, path); err != nil {
		return err
	}
	d.pages.path = path
	c.clock++
	c.files[d.key] = &cachedFile{pageFile: d.pages, used: c.clock, opened: true}
	c.idle.Add(1)
	d.pages = nil
	c.makeRoom()
	return nil
}

// Abort removes the draft; after Commit it does nothing.
func (d *Draft) Abort() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pages == nil {
		return nil
	}
	err := removeIfThere(d.pages.path)
	d.pages.close()
	d.pages = nil
	d.file.Close()
	return err
}

// Close lets go of the draft's own descriptor, after Commit.
func (d *Draft) Close() error { return d.file.Close() }

var zeroPage [PageSize]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:]) }
