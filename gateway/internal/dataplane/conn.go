package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// Conn calls the data plane, each call on the connection to its sandbox's host.
type Conn struct{ hosts *Hosts }

// NewConn makes a Conn.
func NewConn(h *Hosts) *Conn { return &Conn{h} }

var _ grpc.ClientConnInterface = (*Conn)(nil)

// Invoke implements grpc.ClientConnInterface. It opens the stream by itself, because only so a call that was never sent can be told from
// one that may have been carried out.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{}, method, opts...)
	if err != nil {
		return err
	}
	if err := s.SendMsg(args); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(reply)
}

// NewStream implements grpc.ClientConnInterface. Nothing is sent until the first message is, which names the sandbox.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return &stream{hosts: c.hosts, ctx: ctx, desc: desc, method: method, opts: opts}, nil
}

// stream is one call. Its first message must be sent before anything is received.
type stream struct {
	hosts    *Hosts
	ctx      context.Context
	desc     *grpc.StreamDesc
	method   string
	opts     []grpc.CallOption
	first    any               // the first message
	up       grpc.ClientStream // on the sandbox's host; nil before the first message
	received bool
}

func (s *stream) SendMsg(m any) error {
	if s.up != nil {
		return s.up.SendMsg(m)
	}
	s.first = m
	err := s.open(s.desc.ClientStreams)
	var u unreachable
	if errors.As(err, &u) && !s.desc.ClientStreams {
		err = s.open(true)
	}
	if errors.As(err, &u) {
		return u.error
	}
	return err
}

// unreachable wraps the error of a call that never left.
type unreachable struct{ error }

// open opens the call on the sandbox's host and sends the first message.
func (s *stream) open(refresh bool) error {
	named, ok := s.first.(interface{ GetSandboxId() string })
	if !ok {
		return fmt.Errorf("%s: %T names no sandbox", s.method, s.first)
	}
	conn, _, err := s.hosts.Resolve(s.ctx, s.method, named.GetSandboxId(), refresh)
	if err != nil {
		return err
	}
	up, err := conn.NewStream(s.ctx, s.desc, s.method, s.opts...)
	if status.Code(err) == codes.Unavailable {
		return unreachable{err}
	}
	if err != nil {
		return err
	}
	s.up = up
	return up.SendMsg(s.first)
}

func (s *stream) RecvMsg(m any) error {
	if s.up == nil {
		return errors.New("dataplane: received before the first message was sent")
	}
	err := s.up.RecvMsg(m)
	if err == nil || s.received || s.desc.ClientStreams || !notHere(err) {
		s.received = true
		return err
	}
	s.received = true
	if err := s.open(true); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := s.up.CloseSend(); err != nil {
		return err
	}
	return s.up.RecvMsg(m)
}

// notHere tells a host's answer that it does not run the sandbox.
func notHere(err error) bool {
	return status.Code(err) == codes.NotFound && apierr.Reason(err) == apierr.SandboxNotHere
}

func (s *stream) CloseSend() error {
	if s.up == nil {
		return nil
	}
	return s.up.CloseSend()
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) Header() (metadata.MD, error) {
	if s.up == nil {
		return nil, nil
	}
	return s.up.Header()
}

func (s *stream) Trailer() metadata.MD {
	if s.up == nil {
		return nil
	}
	return s.up.Trailer()
}
