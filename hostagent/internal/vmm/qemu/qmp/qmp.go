// Package qmp speaks QEMU's machine protocol: commands and their answers, and events, as lines of JSON over a Unix socket.
//
// Vocabulary
//
//   - client: one connection. QEMU serves one at a time.
//   - command: a request with a number; its answer bears the same one, so answers that come after their caller has given up
//     are told apart and dropped.
//   - event: what QEMU says unasked.
//
// The far end is not trusted: a guest may have taken over its VMM. Lines have a greatest length, unknown ones are passed over, and what is
// no JSON ends the connection with ErrGarbage.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGarbage: the far end said something that is not QMP.
var ErrGarbage = errors.New("not QMP")

// ErrClosed: the connection has ended.
var ErrClosed = errors.New("the QMP connection has ended")

// maxLine bounds a line, in bytes; the longest answers of QEMU (schemas) are not asked for.
const maxLine = 1 << 20

// sendTime bounds how long a command may take to go out: a QEMU that stands still takes no more once its socket is full.
const sendTime = 10 * time.Second

// Error is a command's failure as QEMU says it.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *Error) Error() string { return "QEMU refuses " + e.Command + ": " + e.Desc }

// Event is something that QEMU says unasked.
type Event struct {
	Name string
	Data json.RawMessage
}

// Client is one connection. It is safe for concurrent use.
type Client struct {
	conn    *net.UnixConn
	events  func(Event)
	reader  sync.WaitGroup
	sending sync.Mutex // serialises writes to conn

	mu      sync.Mutex // guards what follows
	waiting map[uint64]chan<- message
	last    uint64
	err     error
	done    chan struct{} // closed when err is set
}

type message struct {
	QMP    json.RawMessage `json:"QMP"`
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// Dial connects, waits for QEMU's greeting and negotiates. The function events is called for each event, by the goroutine that
// reads: it must not wait, and must not call the client.
func Dial(ctx context.Context, path string, events func(Event)) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn.(*net.UnixConn), events: events, waiting: map[uint64]chan<- message{}, done: make(chan struct{})}
	greeted := make(chan struct{})
	c.reader.Go(func() { c.read(greeted) })
	select {
	case <-greeted:
	case <-c.done:
		return nil, errors.Join(c.Err(), c.Close())
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), c.Close())
	}
	if err := c.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Done is closed when the connection has ended, and Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err: see Done.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. Commands that wait for an answer return ErrClosed.
func (c *Client) Close() error {
	c.end(ErrClosed)
	c.reader.Wait()
	return nil
}

// Do executes a command. Its answer is decoded into out, unless that is nil.
func (c *Client) Do(ctx context.Context, command string, args, out any) error {
	return c.send(ctx, command, args, out, nil)
}

// SendFile gives QEMU a descriptor, which other commands refer to by name ("fd:NAME") until one has used it.
func (c *Client) SendFile(ctx context.Context, name string, f *os.File) error {
	return c.send(ctx, "getfd", map[string]string{"fdname": name}, nil, f)
}

func (c *Client) send(ctx context.Context, command string, args, out any, f *os.File) error {
	answer := make(chan message, 1)
	id, err := c.register(answer)
	if err != nil {
		return err
	}
	defer c.forget(id)
	if err := c.write(ctx, command, args, id, f); err != nil {
		return err
	}
	select {
	case m := <-answer:
		return m.into(command, out)
	case <-ctx.Done():
		return fmt.Errorf("QEMU's answer to %s: %w", command, context.Cause(ctx))
	case <-c.done:
	}
	// The answer may have come just before the end.
	select {
	case m := <-answer:
		return m.into(command, out)
	default:
		return c.Err()
	}
}

func (m message) into(command string, out any) error {
	switch {
	case m.Error != nil:
		m.Error.Command = command
		return m.Error
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return fmt.Errorf("QEMU's answer to %s: %w: %w", command, ErrGarbage, err)
	}
	return nil
}

func (c *Client) register(answer chan<- message) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.last++
	c.waiting[c.last] = answer
	return c.last, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

func (c *Client) write(ctx context.Context, command string, args any, id uint64, f *os.File) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return err
	}
	var oob []byte
	if f != nil {
		oob = unix.UnixRights(int(f.Fd()))
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	began := time.Now()
	deadline := began.Add(sendTime)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	c.conn.SetWriteDeadline(deadline)
	n, _, err := c.conn.WriteMsgUnix(append(line, '\n'), oob, nil)
	if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(began.Add(sendTime)) {
		return context.DeadlineExceeded // The caller's time was over before anything was sent.
	}
	if err != nil {
		// Half a command may have gone out: nothing can follow it.
		c.end(fmt.Errorf("send %s to QEMU: %w", command, err))
		return c.Err()
	}
	return nil
}

// end makes err the connection's end, unless it has ended.
func (c *Client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		close(c.done)
		c.conn.Close()
	}
}

func (c *Client) read(greeted chan<- struct{}) {
	lines := bufio.NewReaderSize(c.conn, 4096)
	for greeting := true; ; greeting = false {
		m, err := readMessage(lines)
		if err == nil && greeting && m.QMP == nil {
			err = fmt.Errorf("%w: no greeting", ErrGarbage)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			err = ErrClosed
		}
		if err != nil {
			c.end(err)
			return
		}
		if greeting {
			close(greeted)
			continue
		}
		c.take(m)
	}
}

func readMessage(lines *bufio.Reader) (m message, err error) {
	var line []byte
	for {
		part, err := lines.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return m, err
		}
		if len(line) > maxLine {
			return m, fmt.Errorf("%w: a line of more than %d bytes", ErrGarbage, maxLine)
		}
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("%w: %.80q", ErrGarbage, line)
	}
	return m, nil
}

func (c *Client) take(m message) {
	if m.Event != "" {
		if c.events != nil {
			c.events(Event{Name: m.Event, Data: m.Data})
		}
		return
	}
	if m.ID == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer, ok := c.waiting[*m.ID]; ok {
		answer <- m // has room for it: one answer for each number
		delete(c.waiting, *m.ID)
	}
}
