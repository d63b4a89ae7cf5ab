package nbd

import "sync"

// pool keeps buffers of a few sizes.
type pool []sync.Pool

// sizes of pooled buffers, bytes: one page, what a guest mostly asks for, the most.
var sizes = [...]int{replySize + 4096, replySize + 64<<10, replySize + 512<<10, replySize + MaxRequest}

var buffers = make(pool, len(sizes))

// get returns a buffer of n bytes, at most the largest size. Its content is undefined.
func (p pool) get(n int) *[]byte {
	for i, size := range sizes {
		if n > size {
			continue
		}
		if b, ok := p[i].Get().(*[]byte); ok {
			*b = (*b)[:n]
			return b
		}
		b := make([]byte, size)[:n]
		return &b
	}
	panic("nbd: buffer larger than MaxRequest")
}

// put gives a buffer back, after which it is another's.
func (p pool) put(b *[]byte) {
	for i, size := range sizes {
		if cap(*b) == size {
			p[i].Put(b)
			return
		}
	}
}
