package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// handshakeTime bounds the negotiation.
	handshakeTime = 10 * time.Second
	// budget is what the requests in flight of one connection may hold, bytes; each counts for at least minWeight, so that
	// at most budget/minWeight are in flight.
	budget    = 16 << 20
	minWeight = 128 << 10
)

// conn is one connection of a client.
type conn struct {
	server *Server
	net    net.Conn
	r      *bufio.Reader
	budget *semaphore.Weighted
	wg     sync.WaitGroup

	mu sync.Mutex // guards writing to net, once requests are in flight
}

// serve answers the client until it goes away, does something illegal or ctx ends. All requests have ended when it returns.
func (c *conn) serve(ctx context.Context) error {
	defer c.wg.Wait()
	defer c.net.Close()
	if err := c.net.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	if err := handshake(c.r, c.net, c.server.export.Size()); err != nil {
		return endOf(err)
	}
	if err := c.net.SetDeadline(time.Time{}); err != nil {
		return err
	}
	for {
		more, err := c.next(ctx)
		if !more || err != nil {
			return endOf(err)
		}
	}
}

// endOf is nil for the ways in which connections end well.
func endOf(err error) error {
	for _, end := range []error{io.EOF, errAborted, net.ErrClosed, context.Canceled} {
		if errors.Is(err, end) {
			return nil
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the client did not negotiate within %s", handshakeTime)
	}
	return err
}

// next reads a request and begins to answer it.
func (c *conn) next(ctx context.Context) (more bool, err error) {
	var head [requestSize]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return false, err
	}
	r, err := parseRequest(&head)
	if err != nil {
		return false, err
	}
	if r.kind == cmdDisc {
		return false, nil
	}
	if n := r.payload(); n > MaxRequest {
		// What follows is not worth reading, so the next request cannot be found.
		return false, fmt.Errorf("%w: a write of %d bytes; at most %d are legal", errMagic, n, MaxRequest)
	}
	refused := r.check(c.server.export.Size())
	held := int64(r.payload())
	if r.kind == cmdRead && refused == ok {
		held = int64(r.length)
	}
	weight := max(held, minWeight)
	if err := c.budget.Acquire(ctx, weight); err != nil {
		return false, err
	}
	// The reply's head stands before the data, so that both go out in one write.
	buf := buffers.get(replySize + int(held))
	if _, err := io.ReadFull(c.r, (*buf)[replySize:replySize+int(r.payload())]); err != nil {
		buffers.put(buf)
		c.budget.Release(weight)
		return false, err
	}
	c.wg.Go(func() {
		defer c.budget.Release(weight)
		defer buffers.put(buf)
		c.answer(ctx, r, refused, *buf)
	})
	return true, nil
}

func (c *conn) answer(ctx context.Context, r request, e errno, buf []byte) {
	if e == ok {
		err := c.do(ctx, r, buf[replySize:])
		if err != nil && ctx.Err() != nil {
			e = eSHUTDOWN
		} else if e = errnoOf(err); err != nil {
			c.server.failed(r, err)
		}
	}
	putReply(buf, e, r.cookie)
	if r.kind != cmdRead || e != ok {
		buf = buf[:replySize]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.net.Write(buf); err != nil {
		c.net.Close()
	}
}

func (c *conn) do(ctx context.Context, r request, data []byte) error {
	x, off, n := c.server.export, int64(r.off), int64(r.length)
	switch r.kind {
	case cmdRead:
		return x.ReadAt(ctx, data, off)
	case cmdWrite:
		return x.WriteAt(ctx, data, off)
	case cmdTrim:
		return x.Trim(ctx, off, n)
	case cmdWriteZeroes:
		return x.Zero(ctx, off, n)
	}
	// Flush: what was answered is in the export already, see Export.
	return nil
}
