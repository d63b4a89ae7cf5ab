package process

import (
	"context"
	"errors"
	"sync"
)

const (
	// logBytes bounds what a process's log takes of memory, what each chunk costs besides its bytes included.
	logBytes = 1 << 20
	// chunkBytes is the most that one chunk holds, smallChunk the least that it has room for; chunkCost what it costs besides, about.
	chunkBytes, smallChunk, chunkCost = 64 << 10, 64, 96
)

// Chunk is a piece of output.
type Chunk struct {
	// Stderr tells standard error from standard output.
	Stderr bool
	// Data is the output; read-only; at most 64 KiB.
	Data []byte
	// Sequence is the offset of the first byte in the process's whole output.
	Sequence uint64
}

func (c Chunk) end() uint64 { return c.Sequence + uint64(len(c.Data)) }

// ErrReplaced: another client attached to the process.
var ErrReplaced = errors.New("another client attached to this process")

// outputLog keeps a process's output for its client. All fields are guarded by mu; change is closed and renewed with
// every change that somebody waits for, so that waiting can be cancelled by a context.
type outputLog struct {
	mu      sync.Mutex
	change  chan struct{} // nil while nobody waits
	chunks  []Chunk
	held    int    // what the chunks cost
	next    uint64 // sequence of the next byte
	client  int    // number of the attached client; 0 is none
	clients int    // clients so far
	cursor  uint64 // next byte that the client wants
	closed  bool   // no more output comes
}

// wait waits for the next change. l.mu is held before and after.
func (l *outputLog) wait(ctx context.Context) error {
	if l.change == nil {
		l.change = make(chan struct{})
	}
	change := l.change
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-change:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *outputLog) changed() {
	if l.change != nil {
		close(l.change)
		l.change = nil
	}
}

// write adds output. It waits while a client is attached that has not read what would have to be dropped.
func (l *outputLog) write(stderr bool, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(data) > 0 {
		for l.held >= logBytes {
			if !l.drop() {
				_ = l.wait(context.Background()) // a client that stays is a client that reads, and one that leaves changes the log
			}
		}
		n := l.put(stderr, data)
		data = data[n:]
		l.changed()
	}
}

// drop drops the oldest chunk unless the client still needs it.
func (l *outputLog) drop() bool {
	if l.client != 0 && l.chunks[0].end() > l.cursor {
		return false
	}
	l.held -= cap(l.chunks[0].Data) + chunkCost
	l.chunks[0].Data = nil
	l.chunks = l.chunks[1:]
	return true
}

// put appends to the last chunk, or to a new one: what one write leaves of a chunk's capacity is filled by the next, so
// that a program that writes byte by byte costs little more than its bytes. A reader has only seen what was there before.
func (l *outputLog) put(stderr bool, data []byte) int {
	if n := len(l.chunks); n > 0 {
		if last := &l.chunks[n-1]; last.Stderr == stderr && len(last.Data) < cap(last.Data) {
			had := len(last.Data)
			last.Data = append(last.Data, data[:min(len(data), cap(last.Data)-had)]...)
			l.next += uint64(len(last.Data) - had)
			return len(last.Data) - had
		}
	}
	// A stream that goes on gets ever larger chunks; one that is interrupted by the other gets small ones.
	size := smallChunk
	if n := len(l.chunks); n > 0 && l.chunks[n-1].Stderr == stderr {
		size = 2 * cap(l.chunks[n-1].Data)
	}
	size = min(max(size, len(data)), chunkBytes)
	fresh := append(make([]byte, 0, size), data[:min(len(data), size)]...)
	l.chunks = append(l.chunks, Chunk{Stderr: stderr, Data: fresh, Sequence: l.next})
	l.held += cap(fresh) + chunkCost
	l.next += uint64(len(fresh))
	return len(fresh)
}

// close says that no more output comes.
func (l *outputLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.changed()
}

// attach makes a new client that begins at from, and ends the one before it.
func (l *outputLog) attach(from uint64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients++
	l.client, l.cursor = l.clients, min(from, l.next)
	l.changed()
	return l.client
}

func (l *outputLog) detach(client int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.client == client {
		l.client = 0
		l.changed()
	}
}

func (l *outputLog) attached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.client != 0
}

// size is what it takes of memory.
func (l *outputLog) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held
}

// read returns the client's next output, waiting for it; gap is where the client wanted to begin, if that was dropped.
// done is true, with no chunk, once everything was read and no more comes.
func (l *outputLog) read(ctx context.Context, client int) (c Chunk, gapFrom uint64, gap, done bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.client != client {
			return c, 0, false, false, ErrReplaced
		}
		if l.cursor < l.next {
			break
		}
		if l.closed {
			return c, 0, false, true, nil
		}
		if err := l.wait(ctx); err != nil {
			return c, 0, false, false, err
		}
	}
	if first := l.chunks[0].Sequence; l.cursor < first {
		gapFrom, gap = l.cursor, true
		l.cursor = first
	}
	i := 0
	for l.chunks[i].end() <= l.cursor {
		i++
	}
	c = l.chunks[i]
	c.Data, c.Sequence = c.Data[l.cursor-c.Sequence:], l.cursor
	c.Data = c.Data[:len(c.Data):len(c.Data)]
	l.cursor += uint64(len(c.Data))
	l.changed()
	return c, gapFrom, gap, false, nil
}
