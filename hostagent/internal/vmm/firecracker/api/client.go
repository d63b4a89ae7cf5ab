// Package api speaks Firecracker's API: HTTP/1.1 with JSON bodies over a Unix socket.
//
// Vocabulary
//
//   - client: one connection, kept open.
//   - request: one method, path and body; Firecracker answers them one after the other, in order.
//   - refusal: an answer that is no success; Firecracker says why in its fault_message.
//
// A caller may give up before its answer has come. The answer is then still owed: it is read and dropped when it comes, and the
// requests behind it wait for theirs. So late answers are never taken for others', and requests never overtake each other.
//
// The far end is not trusted: a guest may have taken over its VMM. Answers have a greatest length, and what is not HTTP with JSON
// ends the connection with ErrGarbage.
//
// Chosen: a connection of our own over net/http's reader of answers. Rejected: http.Client, which opens another connection when
// an answer is late, where a request then overtakes the one that still waits; and the SDK, which starts the VMM itself and binds it to
// its caller.
package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGarbage: the far end said something that is not its API.
var ErrGarbage = errors.New("not Firecracker's API")

// ErrClosed: the connection has ended.
var ErrClosed = errors.New("the API connection has ended")

const (
	// maxBody bounds an answer's body, and maxHead its head, in bytes.
	maxBody = 1 << 20
	maxHead = 64 << 10
	// maxOwed bounds the answers that are waited for at once.
	maxOwed = 64
	// sendTime bounds how long a request may take to go out: a VMM that stands still takes no more once its socket is full.
	sendTime = 10 * time.Second
)

// Refusal is a request's failure as Firecracker says it.
type Refusal struct {
	Method, Path string
	Status       int
	Message      string
}

func (e *Refusal) Error() string {
	return fmt.Sprintf("Firecracker refuses %s %s: %s (status %d)", e.Method, e.Path, e.Message, e.Status)
}

// answer is what came for a request.
type answer struct {
	status int
	body   []byte
}

// Exchange is a request and its answer; bodies are as they went over the wire.
type Exchange struct {
	Method, Path string
	Request      []byte
	Status       int
	Answer       []byte
}

// owed is an answer that is to come.
type owed struct {
	method  string
	path    string
	body    []byte
	to      chan answer // of capacity 1: nobody need be there
	since   time.Time
	overdue time.Duration
}

// Client is one connection. It is safe for concurrent use.
type Client struct {
	conn    *net.UnixConn
	trace   func(Exchange)
	reader  sync.WaitGroup
	sending sync.Mutex // serialises writes to conn, and keeps queue in their order

	mu    sync.Mutex // guards what follows
	queue []owed
	err   error
	done  chan struct{} // closed when err is set
}

// Dial connects. The function trace, unless nil, is told of each exchange, by the goroutine that reads: it must not wait.
func Dial(ctx context.Context, path string, trace func(Exchange)) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn.(*net.UnixConn), trace: trace, done: make(chan struct{})}
	c.reader.Go(c.read)
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

// Close ends the connection. Requests that wait for an answer return ErrClosed.
func (c *Client) Close() error {
	c.end(ErrClosed)
	c.reader.Wait()
	return nil
}

// Overdue tells whether an answer has not come in the time that its request allowed, and of how long.
func (c *Client) Overdue() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return 0, false
	}
	waited := time.Since(c.queue[0].since)
	return waited, waited > c.queue[0].overdue
}

// Idle tells that no answer is owed.
func (c *Client) Idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) == 0
}

// Do makes a request; body nil has none. The answer's body is decoded into out, unless that is nil. The answer is overdue after
// the time given, whether or not the caller still waits for it.
func (c *Client) Do(ctx context.Context, method, path string, body, out any, overdue time.Duration) error {
	to, err := c.send(ctx, method, path, body, overdue)
	if err != nil {
		return err
	}
	select {
	case a := <-to:
		return a.into(method, path, out)
	case <-ctx.Done():
		return fmt.Errorf("the answer of Firecracker to %s %s: %w", method, path, context.Cause(ctx))
	case <-c.done:
	}
	// The answer may have come just before the end.
	select {
	case a := <-to:
		return a.into(method, path, out)
	default:
		return c.Err()
	}
}

func (c *Client) send(ctx context.Context, method, path string, body any, overdue time.Duration) (chan answer, error) {
	text, err := encode(body)
	if err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	to := make(chan answer, 1)
	c.mu.Lock()
	err = c.err
	if err == nil && len(c.queue) == maxOwed {
		err = fmt.Errorf("%d requests have not been answered: %w", maxOwed, context.DeadlineExceeded)
	}
	if err == nil {
		c.queue = append(c.queue, owed{method, path, text, to, time.Now(), overdue})
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c.conn.SetWriteDeadline(time.Now().Add(sendTime))
	if _, err := c.conn.Write(message(method, path, text)); err != nil {
		// Half a request cannot be taken back.
		c.end(fmt.Errorf("%w: %w", ErrClosed, err))
		return nil, c.Err()
	}
	return to, nil
}

func encode(body any) ([]byte, error) {
	if body == nil {
		return nil, nil
	}
	return json.Marshal(body)
}

func message(method, path string, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n", method, path)
	if body != nil {
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// read takes answers until the connection ends.
func (c *Client) read() {
	from := &limited{r: c.conn}
	r := bufio.NewReaderSize(from, 4096)
	for {
		from.n = maxHead + maxBody
		if _, err := r.Peek(1); err != nil {
			c.end(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
		next, asked := c.oldest()
		if !asked {
			c.end(fmt.Errorf("%w: an answer that nobody asked for", ErrGarbage))
			return
		}
		a, err := readAnswer(r, next.method)
		if err != nil {
			kind := ErrGarbage
			if from.err != nil {
				kind = ErrClosed
			}
			c.end(fmt.Errorf("%w: %w", kind, err))
			return
		}
		c.mu.Lock()
		c.queue = c.queue[1:]
		c.mu.Unlock()
		if c.trace != nil {
			c.trace(Exchange{next.method, next.path, next.body, a.status, a.body})
		}
		next.to <- a
	}
}

func (c *Client) oldest() (owed, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return owed{}, false
	}
	return c.queue[0], true
}

func readAnswer(r *bufio.Reader, method string) (answer, error) {
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return answer{}, err
	}
	// The body is not closed: that would read what is left of it, which may be without end.
	if resp.ContentLength < 0 || resp.ContentLength > maxBody {
		return answer{}, fmt.Errorf("a body of %d bytes, want 0 to %d", resp.ContentLength, maxBody)
	}
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, body}, err
}

// into puts an answer in the caller's words.
func (a answer) into(method, path string, out any) error {
	if a.status >= 300 || a.status < 200 {
		var f Fault
		if err := json.Unmarshal(a.body, &f); err != nil || f.FaultMessage == "" {
			return fmt.Errorf("%w: status %d of %s %s with the body %.200q", ErrGarbage, a.status, method, path, a.body)
		}
		return &Refusal{Method: method, Path: path, Status: a.status, Message: f.FaultMessage}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(a.body, out); err != nil {
		return fmt.Errorf("%w: %s %s: %w", ErrGarbage, method, path, err)
	}
	return nil
}

func (c *Client) end(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
		close(c.done)
	}
	c.mu.Unlock()
	c.conn.Close()
}

// limited reads at most n bytes, and keeps the error that ended the connection.
type limited struct {
	r   io.Reader
	n   int64
	err error
}

func (l *limited) Read(p []byte) (int, error) {
	if l.n <= 0 {
		return 0, errors.New("an answer that is too long")
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.n)])
	l.n -= int64(n)
	l.err = err
	return n, err
}

// PeerPID is the process that listens at the other end; 0 if it has gone.
func (c *Client) PeerPID() int {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
