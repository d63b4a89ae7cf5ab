package pager

import (
	"cmp"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// SourceCount is what came from one source: "local", "peer" and "registry" as Source tells; "zero": pages of zeros that were
// mapped; "cache": faults on pages that the image's file had by then, or that another session was filling. Bytes is that much memory, whatever it took to move it.
type SourceCount struct {
	Source       string
	Pages, Bytes int64
}

// sourceCounts counts pages by source.
type sourceCounts struct {
	mu    sync.Mutex
	pages map[string]int64 // guarded by mu
	sum   *sourceCounts    // counts too; nil at the top
}

func (c *sourceCounts) add(source string, pages int64) {
	for ; c != nil; c = c.sum {
		c.mu.Lock()
		if c.pages == nil {
			c.pages = map[string]int64{}
		}
		c.pages[source] += pages
		c.mu.Unlock()
	}
}

// list adds up several counts, ordered by source.
func list(counts ...*sourceCounts) []SourceCount {
	sum := map[string]int64{}
	for _, c := range counts {
		c.mu.Lock()
		for s, n := range c.pages {
			sum[s] += n
		}
		c.mu.Unlock()
	}
	var out []SourceCount
	for s, n := range sum {
		out = append(out, SourceCount{Source: s, Pages: n, Bytes: n * PageSize})
	}
	slices.SortFunc(out, func(a, b SourceCount) int { return cmp.Compare(a.Source, b.Source) })
	return out
}

// buckets of a Histogram: the i-th counts what took less than 2^i microseconds, the last everything longer.
const buckets = 26

// Histogram counts durations in buckets; the i-th ends below 2^i microseconds, the last has no end.
type Histogram struct {
	Counts [buckets]int64
	Sum    time.Duration
}

// Quantile is an upper bound of the duration below which a share q lies, 0 where nothing was counted.
func (h Histogram) Quantile(q float64) time.Duration {
	var n int64
	for _, c := range h.Counts {
		n += c
	}
	rank := int64(q * float64(n))
	for i, c := range h.Counts {
		if rank -= c; c > 0 && rank <= 0 {
			return time.Microsecond << i
		}
	}
	return 0
}

type histogram struct {
	counts [buckets]atomic.Int64
	sum    atomic.Int64
}

func (h *histogram) observe(d time.Duration) {
	h.counts[min(bits.Len64(uint64(max(d.Microseconds(), 0))), buckets-1)].Add(1)
	h.sum.Add(int64(d))
}

func (h *histogram) read() (out Histogram) {
	for i := range h.counts {
		out.Counts[i] = h.counts[i].Load()
	}
	out.Sum = time.Duration(h.sum.Load())
	return out
}

// Stats is what the pager has done since it was made, and what it has.
type Stats struct {
	Sessions, Images int
	// CachedBytes is what the page-cache files take; LimitBytes when images that nobody uses go.
	CachedBytes, LimitBytes int64
	// Faults answered: Filled had the pager read the source, Cached found the page in the file, Zero mapped zeros. Retried are those of
	// them that met a change of the mapping.
	Filled, Cached, Zero, Retried int64
	// Removed counts REMOVE events, Failures sessions that failed, Evictions images that went to make room, Strayed files
	// that had pages the pager had not put there.
	Removed, Failures, Evictions, Strayed int64
	// Latency is from the reading of a fault until its thread was woken.
	Latency Histogram
	Sources []SourceCount
}

// tally is where Stats come from.
type tally struct {
	filled, cached, zero, retried, removed, failures, evictions, strayed atomic.Int64
	latency                                                              histogram
	sources                                                              sourceCounts
}

// Stats returns the counts as they are now.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	images, sessions := len(c.files), len(c.sessions)
	c.mu.Unlock()
	t := &c.tally
	return Stats{
		Sessions: sessions, Images: images, CachedBytes: c.bytes.Load(), LimitBytes: c.conf.LimitBytes,
		Filled: t.filled.Load(), Cached: t.cached.Load(), Zero: t.zero.Load(), Retried: t.retried.Load(), Removed: t.removed.Load(),
		Failures: t.failures.Load(), Evictions: t.evictions.Load(), Strayed: t.strayed.Load(),
		Latency: t.latency.read(), Sources: list(&t.sources),
	}
}
