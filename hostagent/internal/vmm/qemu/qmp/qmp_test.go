package qmp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu/qmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`

// far is QEMU's end of a connection.
type far struct {
	net.Conn
	lines *bufio.Scanner
}

// serve lets f play QEMU for one connection, and returns the socket's path.
func serve(t *testing.T, f func(*far)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		f(&far{conn, bufio.NewScanner(conn)})
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

// greet negotiates.
func (f *far) greet() {
	f.say(greeting)
	f.say(`{"return": {}, "id": %d}`, f.hear().ID)
}

func (f *far) say(format string, args ...any) { fmt.Fprintf(f, format+"\r\n", args...) }

type command struct {
	Execute   string
	Arguments json.RawMessage
	ID        int
}

func (f *far) hear() (c command) {
	if f.lines.Scan() {
		json.Unmarshal(f.lines.Bytes(), &c)
	}
	return c
}

func dial(t *testing.T, path string, events func(qmp.Event)) *qmp.Client {
	t.Helper()
	c, err := qmp.Dial(t.Context(), path, events)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAnswersGoToTheirCommandsAndEventsToTheirHandler(t *testing.T) {
	path := serve(t, func(f *far) {
		f.greet()
		one, two := f.hear(), f.hear()
		f.say(`{"event": "STOP", "data": {"a": 1}, "timestamp": {}}`)
		f.say(`{"return": {"of": %q}, "id": %d}`, two.Execute, two.ID)
		f.say(`{"return": {"of": %q}, "id": %d}`, one.Execute, one.ID)
		f.hear()
	})
	var seen []string
	c := dial(t, path, func(e qmp.Event) { seen = append(seen, e.Name+string(e.Data)) })
	errs := make(chan error)
	for i := range 2 {
		name := fmt.Sprint("command", i)
		go func() {
			var out struct{ Of string }
			err := c.Do(context.Background(), name, nil, &out)
			if err == nil && out.Of != name {
				err = fmt.Errorf("%s got the answer to %s", name, out.Of)
			}
			errs <- err
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if len(seen) != 1 || seen[0] != `STOP{"a": 1}` {
		t.Errorf("events: %q", seen)
	}
}

func TestARefusalSaysWhy(t *testing.T) {
	c := dial(t, serve(t, func(f *far) {
		f.greet()
		f.say(`{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}`, f.hear().ID)
		f.hear()
	}), nil)
	err := c.Do(t.Context(), "thing", nil, nil)
	var refusal *qmp.Error
	if !errors.As(err, &refusal) || err.Error() != "QEMU refuses thing: no such thing" {
		t.Errorf("got %v", err)
	}
}

func TestALateAnswerIsNotTakenForAnother(t *testing.T) {
	late := make(chan struct{})
	c := dial(t, serve(t, func(f *far) {
		f.greet()
		slow := f.hear()
		<-late
		f.say(`{"return": {"of": "slow"}, "id": %d}`, slow.ID)
		f.say(`{"return": {"of": "next"}, "id": %d}`, f.hear().ID)
		f.hear()
	}), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Do(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("no answer gave %v", err)
	}
	close(late)
	var out struct{ Of string }
	if err := c.Do(t.Context(), "next", nil, &out); err != nil || out.Of != "next" {
		t.Errorf("got %q, %v", out.Of, err)
	}
}

func TestGarbageEndsTheConnection(t *testing.T) {
	for name, text := range map[string]string{
		"text":     "hello",
		"number":   `{"return": {}, "id": "one"}`,
		"long":     `{"return": "` + strings.Repeat("x", 2<<20) + `"}`,
		"greeting": `{"return": {}, "id": 1}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := serve(t, func(f *far) {
				if name != "greeting" {
					f.greet()
					f.hear()
				}
				f.say("%s", text)
				f.hear()
			})
			c, err := qmp.Dial(t.Context(), path, nil)
			if err == nil {
				defer c.Close()
				err = c.Do(t.Context(), "thing", nil, nil)
			}
			if !errors.Is(err, qmp.ErrGarbage) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAClosedConnectionFailsWhatWaitsAndWhatFollows(t *testing.T) {
	c := dial(t, serve(t, func(f *far) { f.greet(); f.hear() }), nil)
	for range 2 {
		if err := c.Do(t.Context(), "thing", nil, nil); !errors.Is(err, qmp.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	<-c.Done()
}

func TestAGreetingThatDoesNotComeIsWaitedForInTime(t *testing.T) {
	path := serve(t, func(f *far) { f.hear() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := qmp.Dial(ctx, path, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestAFullSocketDoesNotBlockForEver(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	c := dial(t, serve(t, func(f *far) { f.greet(); <-end }), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	long := strings.Repeat("x", 1<<20)
	for range 8 {
		if err := c.Do(ctx, "thing", map[string]string{"x": long}, nil); err != nil {
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			return
		}
	}
}

func FuzzGarbage(f *testing.F) {
	f.Add([]byte(greeting + "\n" + `{"return": {}, "id": 1}`))
	f.Add([]byte(`{"event": "X"}`))
	f.Add([]byte{0xff, 0, '\n'})
	f.Fuzz(func(t *testing.T, said []byte) {
		path := serve(t, func(f *far) { f.Write(said) })
		if c, err := qmp.Dial(t.Context(), path, func(qmp.Event) {}); err == nil {
			c.Do(t.Context(), "thing", nil, nil)
			c.Close()
		}
	})
}
