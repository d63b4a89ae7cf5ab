package relay

import (
	"context"
	"errors"
	"io"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// MaxMessage is the largest message that is passed, bytes.
const MaxMessage = 16 << 20

// Resolve finds a connection for a sandbox. Refresh is set where the last answer turned out to be stale: what is cached must not be used. The func
// that comes with the connection, if not nil, is called when the call no longer needs it. An error is the call's answer.
type Resolve func(ctx context.Context, fullMethod, sandboxID string, refresh bool) (*grpc.ClientConn, func(), error)

// Hooks observe calls; each may be nil. They run in the path of the bytes and must not block.
type Hooks struct {
	// OnStart is called once the sandbox is known.
	OnStart func(sandboxID, fullMethod string)
	// OnFrame is called for every message, of either direction.
	OnFrame func(sandboxID, fullMethod string)
	// OnEnd is called once for every OnStart.
	OnEnd func(sandboxID, fullMethod string)
	// Observe sees a call before it is passed on; first gives a copy of its first message, serialised. What it returns, which may be nil, is called once: with
	// nil at the first answer of the far end or at a good end without one, else with the error that ended the call.
	Observe func(ctx context.Context, fullMethod string, first func() []byte) func(error)
	// Explain may answer a call better than with the error that ended its connection's stream, where the caller has not ended it himself.
	Explain func(sandboxID, fullMethod string, err error) error
}

func (h Hooks) fire(f func(string, string), id, method string) {
	if f != nil {
		f(id, method)
	}
}

// Relay passes calls through.
type Relay struct {
	allow   func(fullMethod string) bool
	resolve Resolve
	hooks   Hooks
	readers sync.WaitGroup
}

// New makes a relay for the methods that allow accepts, like "/covey.guest.v1.FileService/ReadFile"; others are UNIMPLEMENTED.
func New(allow func(fullMethod string) bool, resolve Resolve, hooks Hooks) *Relay {
	return &Relay{allow: allow, resolve: resolve, hooks: hooks}
}

// Handle is the grpc.StreamHandler, for grpc.UnknownServiceHandler. The server must have Codec.
func (r *Relay) Handle(_ any, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	if !r.allow(method) {
		return apierr.E(codes.Unimplemented, "UNKNOWN_METHOD", "unknown method "+method)
	}
	var first frame
	if err := ss.RecvMsg(&first); errors.Is(err, io.EOF) {
		return apierr.Field("sandbox_id", "is required, but the call had no message")
	} else if err != nil {
		return err
	}
	id, err := sandboxID(first.data)
	if err == nil && id == "" {
		err = errors.New("is required")
	}
	if err != nil {
		first.free()
		return apierr.Field("sandbox_id", err.Error())
	}
	trace.SpanFromContext(ss.Context()).SetAttributes(attribute.String("sandbox_id", id)) // So that the sandbox's traces are found.
	r.hooks.fire(r.hooks.OnStart, id, method)
	defer r.hooks.fire(r.hooks.OnEnd, id, method)
	r.hooks.fire(r.hooks.OnFrame, id, method)
	c := &call{Relay: r, ss: ss, method: method, id: id, in: make(chan frame)}
	if r.hooks.Observe != nil {
		c.observed = r.hooks.Observe(ss.Context(), method, first.data.Materialize)
	}
	err = c.run(first)
	c.answered(err)
	return err
}

// Wait returns when the goroutines of all calls have ended. Call it after the server has stopped.
func (r *Relay) Wait() { r.readers.Wait() }

// call is one call that passes through.
type call struct {
	*Relay
	ss         grpc.ServerStream
	method, id string
	ctx        context.Context         // ends with the call; its cause says why
	cancel     context.CancelCauseFunc // of ctx
	in         chan frame              // the caller's frames after the first; closed at half-close
	kept       replay
	observed   func(error) // of Hooks.Observe; nil once it was called
}

// answered tells who observes the call how it was answered.
func (c *call) answered(err error) {
	if c.observed != nil {
		c.observed(err)
		c.observed = nil
	}
}

func (c *call) run(first frame) error {
	c.ctx, c.cancel = context.WithCancelCause(c.ss.Context())
	defer c.cancel(nil)
	defer c.kept.drop()
	c.kept.add(&first)
	// The reader blocks in RecvMsg, which only the return of the handler ends; so the relay waits for it and not the call.
	c.readers.Go(c.read)
	trailer, err := c.attempt([]frame{first}, false)
	if stale(err) && c.kept.intact() {
		trailer, err = c.attempt(c.kept.take(), true)
	}
	c.ss.SetTrailer(passing(trailer))
	var u unreachable
	if errors.As(err, &u) {
		return u.error
	}
	if err != nil && c.hooks.Explain != nil && c.ctx.Err() == nil {
		return c.hooks.Explain(c.id, c.method, err)
	}
	return err
}

// read takes the caller's frames in.
func (c *call) read() {
	for {
		var f frame
		err := c.ss.RecvMsg(&f)
		if errors.Is(err, io.EOF) {
			close(c.in)
			return
		}
		if err != nil {
			c.cancel(err)
			return
		}
		c.hooks.fire(c.hooks.OnFrame, c.id, c.method)
		select {
		case c.in <- f:
		case <-c.ctx.Done():
			f.free()
			return
		}
	}
}

// unreachable wraps the error of a call that never left.
type unreachable struct{ error }

// stale tells an error that says that the sandbox may be elsewhere.
func stale(err error) bool {
	var u unreachable
	if errors.As(err, &u) {
		return status.Code(u.error) == codes.Unavailable
	}
	var r resolved
	return status.Code(err) == codes.NotFound && apierr.Reason(err) == apierr.SandboxNotHere && !errors.As(err, &r)
}

// resolved wraps the answer of resolve itself, which is final.
type resolved struct{ error }

// GRPCStatus makes the wrapped status the call's answer.
func (r resolved) GRPCStatus() *status.Status { return status.Convert(r.error) }

// Unwrap gives the error itself.
func (r resolved) Unwrap() error { return r.error }

var desc = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

// attempt makes the call on one connection, sending frames first and then what the caller sends. It owns frames.
func (c *call) attempt(frames []frame, refresh bool) (metadata.MD, error) {
	conn, release, err := c.resolve(c.ctx, c.method, c.id, refresh)
	if err != nil {
		freeAll(frames)
		return nil, resolved{err}
	}
	if release != nil {
		defer release()
	}
	ctx, cancel := context.WithCancelCause(onward(c.ctx))
	defer cancel(nil)
	cs, err := conn.NewStream(ctx, desc, c.method, grpc.ForceCodecV2(Codec()),
		grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage))
	if err != nil {
		freeAll(frames)
		return nil, unreachable{err}
	}
	var sender sync.WaitGroup
	sender.Go(func() {
		if err := c.send(ctx, cs, frames); err != nil {
			cancel(err)
		}
	})
	err = c.receive(cs)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		err = cause // What made us end the stream, and not that we did.
	}
	cancel(nil)
	sender.Wait()
	return cs.Trailer(), err
}

// send sends frames and then the caller's, until the caller half-closes or the far end ends the call. It owns frames.
func (c *call) send(ctx context.Context, cs grpc.ClientStream, frames []frame) error {
	for i := range frames {
		err := cs.SendMsg(&frames[i])
		frames[i].free()
		if err != nil {
			freeAll(frames[i+1:])
			return sendError(err)
		}
	}
	for {
		select {
		case f, more := <-c.in:
			if !more {
				return cs.CloseSend()
			}
			c.kept.add(&f)
			err := cs.SendMsg(&f)
			f.free()
			if err != nil {
				return sendError(err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// sendError leaves out io.EOF: the far end has ended the call, and the receiving side gets its status.
func sendError(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// receive passes the far end's header and frames to the caller until its status.
func (c *call) receive(cs grpc.ClientStream) error {
	// Without a header the call has only a status, which the first RecvMsg returns, as it does any error.
	if header, err := cs.Header(); err == nil && len(header) > 0 {
		c.kept.drop()
		if err := c.ss.SendHeader(passing(header)); err != nil {
			return err
		}
	}
	for {
		var f frame
		if err := cs.RecvMsg(&f); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		c.hooks.fire(c.hooks.OnFrame, c.id, c.method)
		c.answered(nil)
		err := c.ss.SendMsg(&f)
		f.free()
		if err != nil {
			return err
		}
	}
}
