package pager

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
)

// Image is one use of a snapshot's memory on this host. Uses of the same snapshot share its file.
type Image struct {
	cache  *Cache
	file   *cachedFile
	src    Source
	ctx    context.Context // ends with the use
	cancel context.CancelFunc
	gate   *gate // prefetching goes in here
	counts sourceCounts
	once   sync.Once
}

func newImage(c *Cache, f *cachedFile, src Source) *Image {
	img := &Image{cache: c, file: f, src: src, gate: newGate()}
	img.counts.sum = &c.tally.sources
	img.ctx, img.cancel = context.WithCancel(c.ctx)
	return img
}

// File is the image's file, opened read-only, for a VMM to map. It belongs to the image.
func (img *Image) File() *os.File { return img.file.ro }

// Size is the size of the memory, in bytes.
func (img *Image) Size() int64 { return img.file.size }

// Release ends the use. Sessions of it have been closed; the source is not read any more.
func (img *Image) Release() {
	img.once.Do(func() {
		img.cancel()
		img.gate.close()
		<-img.gate.empty
		img.cache.letGo(img.file)
	})
}

// prefetchers is how many fills of one image's working set are under way at once: enough to hide some waiting, and few, as faults come
// first.
const prefetchers = 2

// prefetch brings in a working set in the background. What cannot be read is left to the faults to find.
func (img *Image) prefetch(workingSet []int64) {
	spans := spansOf(workingSet, img.file.size)
	var next atomic.Int64
	for range prefetchers {
		if !img.gate.enter() {
			return
		}
		img.cache.pool.submit(func() {
			defer img.gate.leave()
			for img.ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(spans) {
					return
				}
				if err := img.bringIn(spans[i]); err != nil && img.ctx.Err() == nil {
					img.cache.log.Warn("prefetching ends early", "key", img.file.key, "err", err)
					return
				}
			}
		})
	}
}

// span is a range of an image.
type span struct{ from, to int64 }

// spansOf joins neighbours of a working set that follow one another, up to what is read at once. It skips what the image has not.
func spansOf(workingSet []int64, size int64) []span {
	var spans []span
	for _, off := range workingSet {
		off -= off % blockSize
		if off < 0 || off >= size {
			continue
		}
		to := min(off+blockSize, size)
		if n := len(spans); n > 0 && spans[n-1].to == off && to-spans[n-1].from <= maxBring {
			spans[n-1].to = to
			continue
		}
		spans = append(spans, span{off, to})
	}
	return spans
}

// bringIn fills what the file lacks of a span and nobody is filling.
func (img *Image) bringIn(sp span) error {
	f := img.file.pageFile
	for n, last := sp.from/f.unit, (sp.to+f.unit-1)/f.unit; n < last; n++ {
		f.mu.Lock()
		if f.flights[n] != nil || f.has(n) {
			f.mu.Unlock()
			continue
		}
		fl := f.begin(n, last-n, flight{src: img.src, ctx: img.ctx, counts: &img.counts})
		f.mu.Unlock()
		if err := img.cache.run(f, fl); err != nil {
			return err
		}
		n = fl.last - 1
	}
	return nil
}

// has tells whether the file has all pages of a unit.
func (f *pageFile) has(unit int64) bool {
	first, last := unit*f.unit/PageSize, min((unit+1)*f.unit, f.size)/PageSize
	in, end := f.filled.run(first, last)
	return in && end == last
}

// run does a fill and answers who waits for it.
func (c *Cache) run(f *pageFile, fl *flight) error {
	err := c.fill(f, fl)
	for _, w := range f.end(fl) {
		w.s.landed(w, fl, err)
	}
	c.makeRoom()
	return err
}

// fill bounds the time of a fill that may have to wait. One that is local is served between two faults, where a timer would be felt.
func (c *Cache) fill(f *pageFile, fl *flight) error {
	if fl.local {
		return f.fill(fl.ctx, fl)
	}
	ctx, cancel := context.WithTimeout(fl.ctx, c.conf.ReadTime)
	defer cancel()
	return f.fill(ctx, fl)
}
