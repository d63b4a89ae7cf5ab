package rest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// talker is a call that gives output, and then ends.
type talker struct {
	guestv1.ProcessService_ExecStreamClient
	frames int
}

const talkerFrame = 64 << 10

func (c *talker) Recv() (*guestv1.ExecStreamResponse, error) {
	if c.frames == 0 {
		return nil, io.EOF
	}
	c.frames--
	out := &guestv1.Output{Stream: guestv1.OutputStream_OUTPUT_STREAM_STDOUT, Data: make([]byte, talkerFrame)}
	return &guestv1.ExecStreamResponse{Frame: &guestv1.ExecStreamResponse_Output{Output: out}}, nil
}

// stalled joins a client that does not read for a while to a talker, and tells how much it gets then, and why the call ended.
func stalled(t *testing.T, live liveness, frames int, stall time.Duration) (got int, cause error) {
	t.Helper()
	ended := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.CloseNow()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		e := &execSocket{ws: ws, ctx: ctx, live: live, binary: true, call: &talker{frames: frames}}
		e.callCtx, e.endCall = context.WithCancelCause(ctx)
		context.AfterFunc(e.callCtx, func() { time.AfterFunc(time.Millisecond, cancel) })
		var others sync.WaitGroup
		others.Go(e.ping)
		others.Go(func() { ws.Read(ctx) }) // For pongs.
		err = e.output()
		if gone := context.Cause(e.callCtx); gone != nil {
			err = gone
		}
		ended <- err
		e.close(err)
		cancel()
		others.Wait()
	}))
	defer srv.Close()
	ws, _, err := websocket.Dial(t.Context(), srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	ws.SetReadLimit(1 << 20)
	<-time.After(stall)
	for {
		_, b, err := ws.Read(t.Context())
		if err != nil {
			return got, <-ended
		}
		got += len(b) - 9
	}
}

func TestAClientThatReadsSlowlyIsWaitedForAndOneThatNeverReadsIsNot(t *testing.T) {
	const frames = 1000 // 64 MB: more than sockets buffer
	quick := liveness{every: 10 * time.Millisecond, pong: 3 * time.Second, stall: time.Minute}
	if got, err := stalled(t, quick, frames, 4*time.Second); got != frames*talkerFrame || err != nil {
		t.Errorf("a slow client got %d bytes, and then %v", got, err)
	}
	quick.stall = 50 * time.Millisecond
	if got, err := stalled(t, quick, frames, 3*time.Second); got == frames*talkerFrame || !errors.Is(err, errGone) {
		t.Errorf("a client that never reads got %d bytes, and then %v", got, err)
	}
}
