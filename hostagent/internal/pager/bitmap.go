package pager

import (
	"math/bits"
	"sync/atomic"
)

// PageSize is the size of a page of memory, in bytes.
const PageSize = 4096

// blockSize is the granularity of fills and working sets, in bytes.
const blockSize = 64 << 10

// bitmap is a set of page or block numbers. Its methods are safe for concurrent use.
type bitmap struct{ words []atomic.Uint64 }

func newBitmap(n int64) *bitmap { return &bitmap{words: make([]atomic.Uint64, (n+63)/64)} }

func (b *bitmap) has(i int64) bool { return b.words[i/64].Load()&(1<<(i%64)) != 0 }

// add puts i in and tells whether it was not there before.
func (b *bitmap) add(i int64) bool {
	return b.words[i/64].Or(1<<(i%64))&(1<<(i%64)) == 0
}

// remove takes i out and tells whether it was there.
func (b *bitmap) remove(i int64) bool {
	return b.words[i/64].And(^uint64(1<<(i%64)))&(1<<(i%64)) != 0
}

// addRange puts [from, to) in and returns how many were not there before.
func (b *bitmap) addRange(from, to int64) (added int64) {
	for from < to {
		word := from / 64
		end := min(to, (word+1)*64)
		mask := (^uint64(0) >> (64 - (end - from))) << (from % 64)
		added += int64(bits.OnesCount64(mask &^ b.words[word].Or(mask)))
		from = end
	}
	return added
}

// run returns whether i is in the set, and the first number from i on, up to limit, of which the opposite is true.
func (b *bitmap) run(i, limit int64) (in bool, end int64) {
	in = b.has(i)
	for end = i; end < limit; {
		w := b.words[end/64].Load()
		if in {
			w = ^w
		}
		if w >>= end % 64; w != 0 {
			return in, min(end+int64(bits.TrailingZeros64(w)), limit)
		}
		end = (end/64 + 1) * 64
	}
	return in, limit
}
