package rest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

const (
	// settle is how long the first event is waited for before the answer begins: an error until then has its HTTP status.
	settle = 250 * time.Millisecond
	// heartbeat is how often a stream of server-sent events without events shows that it lives.
	heartbeat = 15 * time.Second
)

// received is what came of one Recv.
type received[M any] struct {
	message M
	err     error
}

// pump receives in a goroutine, which ends when ctx does and after an error. The channel is closed when it has ended.
func pump[M any](ctx context.Context, recv func() (M, error)) <-chan received[M] {
	out := make(chan received[M])
	go func() {
		defer close(out)
		for {
			m, err := recv()
			select {
			case out <- received[M]{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}

// follow answers with what recv gives until it ends: begin writes the head of the answer, write each message, idle something now and then.
func follow[M any](s *Server, r *http.Request, cancel func(), recv func() (M, error), begin func(), write func(M) error, idle func() error) error {
	in := pump(r.Context(), recv)
	defer func() {
		cancel() // Ends recv.
		for range in {
		}
	}()
	first := time.NewTimer(settle)
	defer first.Stop()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	started := false
	start := func() {
		if !started {
			started = true
			begin()
		}
	}
	for {
		select {
		case got, ok := <-in:
			if !ok || errors.Is(got.err, io.EOF) {
				start()
				return nil
			}
			if got.err != nil {
				return got.err
			}
			start()
			if err := write(got.message); err != nil {
				return err
			}
		case <-first.C:
			start()
		case <-beat.C:
			if err := idle(); err != nil {
				return err
			}
		case <-s.Draining:
			start()
			return nil
		case <-r.Context().Done():
			return access.Ended(r.Context())
		}
	}
}

// events writes messages as server-sent events where the client asks for them, else as JSON, one a line. An error in the middle is the last
// event, or the last line: {"error": {...}}.
func events[M proto.Message](s *Server, w http.ResponseWriter, r *http.Request, cancel func(), recv func() (M, error), id func(M) string) error {
	sse := strings.Contains(r.Header.Get("Accept"), "text/event-stream")
	out := http.NewResponseController(w)
	begin := func() {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", map[bool]string{true: "text/event-stream", false: "application/x-ndjson"}[sse])
		w.WriteHeader(http.StatusOK)
		out.Flush()
	}
	put := func(parts ...string) error {
		if _, err := io.WriteString(w, strings.Join(parts, "")); err != nil {
			return err
		}
		return out.Flush()
	}
	write := func(m M) error {
		b, err := marshal.Marshal(m)
		if err != nil {
			return err
		}
		switch {
		case !sse:
			return put(string(b), "\n")
		case id(m) != "":
			return put("id: ", id(m), "\ndata: ", string(b), "\n\n")
		}
		return put("data: ", string(b), "\n\n")
	}
	idle := func() error {
		if !sse {
			return nil
		}
		return put(": nothing new\n\n")
	}
	err := follow(s, r, cancel, recv, begin, write, idle)
	if err == nil || !begun(w) {
		return err
	}
	p, internal := explain(r.Context(), err)
	if internal {
		s.Log.ErrorContext(r.Context(), "stream failed", "path", r.URL.Path, "error", err)
	}
	if sse {
		put("event: error\ndata: ", string(p.json()), "\n\n") // An error is the client's going away, here and below.
	} else {
		put(string(p.json()), "\n")
	}
	return nil
}

// watchSandboxes streams changes of sandboxes.
func (s *Server) watchSandboxes(w http.ResponseWriter, r *http.Request, _ map[string]string) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	q := &sandboxv1.WatchSandboxesRequest{SandboxId: r.URL.Query().Get("sandbox_id"), ResumeToken: r.URL.Query().Get("resume_token")}
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		q.ResumeToken = last
	}
	call, err := s.sandboxes.WatchSandboxes(ctx, q)
	if err != nil {
		return err
	}
	return events(s, w, r, cancel, call.Recv, (*sandboxv1.WatchSandboxesResponse).GetResumeToken)
}

// watchFiles streams changes of files.
func (s *Server) watchFiles(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	v := r.URL.Query()
	recursive, err := boolean(v.Get("recursive"), "recursive")
	if err != nil {
		return err
	}
	call, err := s.files.WatchFiles(ctx, &guestv1.WatchFilesRequest{
		SandboxId: params["sandbox_id"], Path: v.Get("path"), User: v.Get("user"), Recursive: recursive,
	})
	if err != nil {
		return err
	}
	return events(s, w, r, cancel, call.Recv, func(*guestv1.WatchFilesResponse) string { return "" })
}

// logs sends the console of a sandbox as text.
func (s *Server) logs(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	q := &sandboxv1.ReadSandboxLogsRequest{SandboxId: params["sandbox_id"]}
	var err error
	if q.Follow, err = boolean(r.URL.Query().Get("follow"), "follow"); err != nil {
		return err
	}
	if n := r.URL.Query().Get("tail_bytes"); n != "" {
		if q.TailBytes, err = strconv.ParseInt(n, 10, 64); err != nil || q.TailBytes < 0 {
			return apierr.Field("tail_bytes", "must be a number of bytes, got "+strconv.Quote(n))
		}
	}
	call, err := s.sandboxes.ReadSandboxLogs(ctx, q)
	if err != nil {
		return err
	}
	out := http.NewResponseController(w)
	begin := func() {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusOK)
		out.Flush()
	}
	return follow(s, r, cancel, call.Recv, begin, func(m *sandboxv1.ReadSandboxLogsResponse) error {
		if _, err := w.Write(m.GetData()); err != nil {
			return err
		}
		return out.Flush()
	}, func() error { return nil })
}

func boolean(v, name string) (bool, error) {
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, apierr.Field(name, "must be true or false, got "+strconv.Quote(v))
	}
	return b, nil
}
