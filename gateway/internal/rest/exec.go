package rest

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// Subprotocols of exec. In both, a client's text message is an ExecStreamRequest in JSON and its binary message is standard input; the server's
// text message is an ExecStreamResponse in JSON, or {"error": {...}}. They differ in how output comes: as JSON, or as a binary message of one
// byte for the stream (1 stdout, 2 stderr), eight for the sequence (big-endian), and the bytes.
const (
	protocolJSON   = "covey.exec.v1.json"
	protocolBinary = "covey.exec.v1.binary"
)

const (
	// maxMessage is the largest message from a client, bytes: 1 MiB of standard input in base64, and room.
	maxMessage = 2 << 20
	// maxStdin is the largest frame of standard input to the guest, bytes.
	maxStdin = 1 << 20
	// firstWait is how long a client may take for its first message.
	firstWait = 30 * time.Second
	// pingEvery and pongWait keep a connection alive, and end one that is dead. Where output was sent since the last answer, which a slow client
	// has to take before it sees the next ping, stallWait is waited for one.
	pingEvery = 20 * time.Second
	pongWait  = 30 * time.Second
	stallWait = 5 * time.Minute
	// closeWait is how long a client that does not read may keep the socket of a call that has ended.
	closeWait = 5 * time.Second
	// drainWait is how long sockets may go on when the gateway ends.
	drainWait = 3 * time.Second
	// closeBase plus an HTTP status is the close code after an error.
	closeBase = 4000
)

// execStream serves one process over a WebSocket.
func (s *Server) execStream(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	if err := upgrades(r); err != nil {
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Sec-WebSocket-Version", "13")
		return err
	}
	method := guestv1.ProcessService_ExecStream_FullMethodName
	if err := s.Keys.Check(r.Context(), method); err != nil {
		return err
	}
	// Asked first, so that a sandbox that is not there is an HTTP status and not a close code.
	if err := s.Locate(r.Context(), method, params["sandbox_id"]); err != nil {
		return err
	}
	s.sockets.Add(1)
	defer s.sockets.Done()
	// Any page may connect: what counts is the key, which no browser sends by itself.
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{protocolBinary, protocolJSON}, InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		s.Log.InfoContext(r.Context(), "WebSocket refused", "error", err)
		return nil // Accept has answered.
	}
	defer ws.CloseNow()
	ws.SetReadLimit(maxMessage)
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	e := &execSocket{s: s, ws: ws, ctx: ctx, live: defaultLiveness, sandbox: params["sandbox_id"], binary: ws.Subprotocol() == protocolBinary}
	e.callCtx, e.endCall = context.WithCancelCause(ctx)
	defer e.endCall(nil)
	context.AfterFunc(e.callCtx, func() { time.AfterFunc(closeWait, cancel) })
	defer context.AfterFunc(r.Context(), func() {
		if revoked := access.Ended(r.Context()); revoked != nil {
			e.endCall(revoked) // The socket is still there to say so.
			return
		}
		cancel()
	})()
	if err := e.begin(); err != nil {
		e.close(err)
		return nil
	}
	var others sync.WaitGroup
	others.Go(e.input)
	others.Go(e.ping)
	others.Go(func() { s.endWithGateway(ctx, func() { e.endCall(errEnding) }) })
	e.close(e.output()) // With input still reading: it sees the client's answer to the closing.
	cancel()
	others.Wait()
	return nil
}

// upgrades is nil for a request that asks for a WebSocket as RFC 6455 wants it: the library would refuse others in its own words.
func upgrades(r *http.Request) error {
	h := r.Header
	key, err := base64.StdEncoding.DecodeString(h.Get("Sec-WebSocket-Key"))
	if has(h, "Upgrade", "websocket") && has(h, "Connection", "upgrade") && h.Get("Sec-WebSocket-Version") == "13" && err == nil && len(key) == 16 && len(h["Sec-Websocket-Key"]) == 1 {
		return nil
	}
	return refusal{http.StatusUpgradeRequired, apierr.E(codes.InvalidArgument, "UPGRADE_REQUIRED", "exec/stream is a WebSocket: ask for an upgrade to it, version 13")}
}

// has tells whether a header lists a token.
func has(h http.Header, name, token string) bool {
	for _, line := range h.Values(name) {
		for t := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// errEnding is why sockets end with the gateway.
var errEnding = errors.New("the gateway is ending; attach again")

// errGone is why a call to the guest ends when the client has gone.
var errGone = errors.New("the client has gone")

// execSocket is one WebSocket and the call that it is joined to.
type execSocket struct {
	s       *Server
	ws      *websocket.Conn
	ctx     context.Context // the socket's: when it ends, the socket is closed without a word
	callCtx context.Context // the call's; its cause says why it ended
	endCall context.CancelCauseFunc
	sandbox string
	binary  bool
	call    guestv1.ProcessService_ExecStreamClient
	exited  bool
	live    liveness
	sent    atomic.Int64 // messages of output
}

// liveness are the times of pings.
type liveness struct{ every, pong, stall time.Duration }

var defaultLiveness = liveness{pingEvery, pongWait, stallWait}

// begin reads the client's first message and makes the call with it.
func (e *execSocket) begin() error {
	wait, stop := context.WithTimeout(e.ctx, firstWait)
	defer stop()
	m, err := e.read(wait)
	if err != nil {
		return err
	}
	if m.GetStart() == nil && m.GetAttach() == nil {
		return apierr.Field("start", "the first message must have start or attach")
	}
	m.SandboxId = e.sandbox
	if e.call, err = e.s.processes.ExecStream(e.callCtx); err != nil {
		return err
	}
	if err := e.call.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// input passes the client's messages on, until it goes or the call ends.
func (e *execSocket) input() {
	for {
		m, err := e.read(e.ctx)
		if err != nil { // Among them io.EOF, of a client that went without a word.
			e.endCall(err)
			return
		}
		// After io.EOF the call has ended, and output gets its status; the client's answer to the closing is still to be read.
		if err := e.send(m); err != nil && !errors.Is(err, io.EOF) {
			e.endCall(err)
			return
		}
	}
}

// send sends a frame; standard input in pieces that the guest takes.
func (e *execSocket) send(m *guestv1.ExecStreamRequest) error {
	in, ok := m.GetFrame().(*guestv1.ExecStreamRequest_Stdin)
	if !ok {
		return e.call.Send(m)
	}
	for first := true; first || len(in.Stdin) > 0; first = false {
		n := min(maxStdin, len(in.Stdin))
		if err := e.call.Send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: in.Stdin[:n]}}); err != nil {
			return err
		}
		in.Stdin = in.Stdin[n:]
	}
	return nil
}

// read reads one message.
func (e *execSocket) read(ctx context.Context) (*guestv1.ExecStreamRequest, error) {
	kind, b, err := e.ws.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errGone, err)
	}
	m := &guestv1.ExecStreamRequest{}
	if kind == websocket.MessageBinary {
		m.Frame = &guestv1.ExecStreamRequest_Stdin{Stdin: b}
		return m, nil
	}
	if err := read(b, m); err != nil {
		return nil, malformed(err.Error())
	}
	if m.GetSandboxId() != "" && m.GetSandboxId() != e.sandbox {
		return nil, apierr.Field("sandbox_id", "must be left out, or be that of the URL")
	}
	if m.GetFrame() == nil {
		return nil, apierr.E(codes.InvalidArgument, "INVALID_FRAME", "a message must have one of start, attach, stdin, close_stdin, resize, signal, detach")
	}
	m.SandboxId = ""
	return m, nil
}

// ping keeps the connection alive, and ends the call of one that no longer answers.
func (e *execSocket) ping() {
	tick := time.NewTicker(e.live.every)
	defer tick.Stop()
	var seen int64 // what was sent before the last pong
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-tick.C:
		}
		sent, wait := e.sent.Load(), e.live.pong
		if sent > seen {
			wait = e.live.stall
		}
		ctx, stop := context.WithTimeout(e.ctx, wait)
		err := e.ws.Ping(ctx)
		stop()
		if err != nil {
			e.endCall(fmt.Errorf("%w: no pong: %w", errGone, err))
			return
		}
		seen = sent
	}
}

// output passes the guest's frames on. A client that does not read holds them up, and so the process in the guest.
func (e *execSocket) output() error {
	for {
		m, err := e.call.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if cause := context.Cause(e.callCtx); cause != nil {
				return cause
			}
			return err
		}
		if err := e.write(m); err != nil {
			return fmt.Errorf("%w: %w", errGone, err)
		}
		e.exited = e.exited || m.GetExited() != nil
	}
}

func (e *execSocket) write(m *guestv1.ExecStreamResponse) error {
	e.sent.Add(1)
	if out := m.GetOutput(); out != nil && e.binary {
		b := make([]byte, 0, 9+len(out.GetData()))
		b = append(b, byte(out.GetStream()))
		b = binary.BigEndian.AppendUint64(b, out.GetSequence())
		return e.ws.Write(e.ctx, websocket.MessageBinary, append(b, out.GetData()...))
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return err
	}
	return e.ws.Write(e.ctx, websocket.MessageText, b)
}

// close ends the socket: normally after the process's end, else with the error as a last message, if the client is still there.
func (e *execSocket) close(err error) {
	switch {
	case errors.Is(err, errEnding):
		e.ws.Close(websocket.StatusGoingAway, errEnding.Error())
	case errors.Is(err, errGone):
		e.ws.CloseNow()
	case err == nil && e.exited:
		e.ws.Close(websocket.StatusNormalClosure, "")
	case err == nil:
		e.ws.Close(websocket.StatusNormalClosure, "the stream has ended; the process runs on")
	default:
		p, internal := explain(e.ctx, err)
		if internal {
			e.s.Log.ErrorContext(e.ctx, "exec stream failed", "sandbox_id", e.sandbox, "error", err)
		}
		ctx, stop := context.WithTimeout(context.WithoutCancel(e.ctx), pongWait)
		defer stop()
		if e.ws.Write(ctx, websocket.MessageText, p.json()) == nil {
			e.ws.Close(websocket.StatusCode(closeBase+p.status), p.Reason)
		}
	}
}
