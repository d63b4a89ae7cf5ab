package process

import (
	"context"
	"errors"
	"sync"
)

// logBytes is how much output a process keeps for replay.
const logBytes = 1 << 20

// Chunk is a piece of output.
type Chunk struct {
	// Stderr tells standard error from standard output.
	Stderr bool
	// Data is the output; read-only.
	Data []byte
	// Sequence is the offset of the first byte in the process's whole output.
	Sequence uint64
}

// errReplaced: another client attached to the process.
var errReplaced = errors.New("another client attached to this process")

// outputLog keeps a process's output for its client. All fields are guarded by mu; change is closed and renewed with
// every change, so that waiting can be cancelled by a context.
type outputLog struct {
	mu      sync.Mutex
	change  chan struct{}
	chunks  []Chunk
	held    int    // bytes in chunks
	next    uint64 // sequence of the next byte
	client  int    // number of the attached client; 0 is none
	clients int    // clients so far
	cursor  uint64 // next byte that the client wants
	closed  bool   // no more output comes
}

func newLog() *outputLog { return &outputLog{change: make(chan struct{})} }

func (l *outputLog) changed() {
	close(l.change)
	l.change = make(chan struct{})
}

// append adds output. It waits while a client is attached and is a whole log behind.
func (l *outputLog) append(stderr bool, data []byte) {
	l.mu.Lock()
	for l.client != 0 && l.next-l.cursor >= logBytes {
		wait := l.change
		l.mu.Unlock()
		<-wait
		l.mu.Lock()
	}
	l.chunks = append(l.chunks, Chunk{Stderr: stderr, Data: append([]byte(nil), data...), Sequence: l.next})
	l.next += uint64(len(data))
	l.held += len(data)
	for l.held > logBytes && len(l.chunks) > 1 {
		l.held -= len(l.chunks[0].Data)
		l.chunks[0].Data = nil
		l.chunks = l.chunks[1:]
	}
	l.changed()
	l.mu.Unlock()
}

// close says that no more output comes.
func (l *outputLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		l.changed()
	}
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

// read returns the client's next output, waiting for it; gap is where the client wanted to begin, if that was dropped.
// done is true, with no chunk, once everything was read and no more comes.
func (l *outputLog) read(ctx context.Context, client int) (c Chunk, gapFrom uint64, gap, done bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.client != client {
			return c, 0, false, false, errReplaced
		}
		if l.cursor < l.next {
			break
		}
		if l.closed {
			return c, 0, false, true, nil
		}
		wait := l.change
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			l.mu.Lock()
			return c, 0, false, false, context.Cause(ctx)
		case <-wait:
		}
		l.mu.Lock()
	}
	if first := l.chunks[0].Sequence; l.cursor < first {
		gapFrom, gap = l.cursor, true
		l.cursor = first
	}
	i := 0
	for l.chunks[i].Sequence+uint64(len(l.chunks[i].Data)) <= l.cursor {
		i++
	}
	c = l.chunks[i]
	skip := l.cursor - c.Sequence
	c.Data, c.Sequence = c.Data[skip:], l.cursor
	l.cursor += uint64(len(c.Data))
	l.changed()
	return c, gapFrom, gap, false, nil
}
