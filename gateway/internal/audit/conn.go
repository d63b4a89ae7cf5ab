package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// changes tells methods that change something, or use a sandbox from inside.
func changes(fullMethod string) bool {
	name := short(fullMethod)
	for _, verb := range []string{"Get", "List", "Watch", "Explain", "Read", "Stat", "Ping"} {
		if strings.HasPrefix(name, verb) {
			return false
		}
	}
	return true
}

func short(fullMethod string) string { return fullMethod[strings.LastIndexByte(fullMethod, '/')+1:] }

// Of is the event of a call by the context's caller.
func Of(ctx context.Context, method, target, detail string) Event {
	c, _ := access.From(ctx)
	return Event{Tenant: c.Tenant, KeyID: c.KeyID, RequestID: tenant.RequestID(ctx), Method: method, Target: target, Detail: detail}
}

// event is that of a call with its first message.
func event(ctx context.Context, fullMethod string, m any) Event {
	e := Of(ctx, short(fullMethod), "", detail(m))
	switch m := m.(type) {
	case interface{ GetSandboxId() string }:
		e.Target = m.GetSandboxId()
	case interface{ GetSnapshotId() string }:
		e.Target = m.GetSnapshotId()
	case interface{ GetHostId() string }:
		e.Target = m.GetHostId()
	}
	return e
}

// detail is what a call was about in particular. Nothing that may be a secret is in it.
func detail(m any) string {
	switch m := m.(type) {
	case *guestv1.ExecRequest:
		return m.GetCmd()
	case *guestv1.ExecStreamRequest:
		if a := m.GetAttach(); a != nil {
			return "attach " + a.GetProcessId()
		}
		return m.GetStart().GetCmd()
	case *guestv1.SignalProcessRequest:
		return m.GetSignal() + " to " + m.GetProcessId()
	case *guestv1.WriteFileRequest:
		return m.GetHeader().GetPath()
	case *guestv1.MakeDirectoryRequest:
		return m.GetPath()
	case *guestv1.MoveFileRequest:
		return m.GetSource() + " to " + m.GetDestination()
	case *guestv1.RemoveFileRequest:
		return m.GetPath()
	case *guestv1.ConnectRequest:
		return "port " + strconv.FormatUint(uint64(m.GetPort()), 10)
	case *snapshotv1.RenameSnapshotRequest:
		return m.GetName()
	case *schedulerv1.CordonHostRequest:
		return fmt.Sprintf("cordoned %t", m.GetCordoned())
	}
	return ""
}

// used notes the use of a sandbox. What it returns is called once, with how that began to be answered.
func (l *Log) used(e Event, fullMethod string) func(error) {
	if fullMethod == guestv1.PortService_Connect_FullMethodName { // A page is many connections.
		return func(err error) { l.Tally(e, err) }
	}
	return l.Start(e).End
}

// Observe is a relay's hook: it sees the first message of each call to a sandbox, and its first answer.
func (l *Log) Observe(ctx context.Context, fullMethod string, first func() []byte) func(error) {
	if !changes(fullMethod) {
		return nil
	}
	m, err := request(fullMethod)
	if err == nil {
		err = proto.Unmarshal(first(), m)
	}
	if err != nil {
		l.log.WarnContext(ctx, "a call's first message cannot be read for the audit log", "method", fullMethod, "error", err)
	}
	return l.used(event(ctx, fullMethod, m), fullMethod)
}

// request is an empty message of a method's requests.
func request(fullMethod string) (proto.Message, error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(fullMethod, "/"), "/", ".")))
	if err != nil {
		return nil, err
	}
	method, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is no method", fullMethod)
	}
	t, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
	if err != nil {
		return nil, err
	}
	return t.New().Interface(), nil
}

// Control is a connection to a service of the control plane that writes no log itself: calls that change something are begun and ended in the log.
func (l *Log) Control(conn grpc.ClientConnInterface) grpc.ClientConnInterface {
	return control{conn, l}
}

type control struct {
	grpc.ClientConnInterface
	log *Log
}

func (c control) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if !changes(method) {
		return c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	}
	n, err := c.log.Begin(ctx, event(ctx, method, args))
	if err != nil {
		return err
	}
	err = c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	n.Finish(ctx, err)
	return err
}

// Data is a connection to the data plane whose calls are noted.
func (l *Log) Data(conn grpc.ClientConnInterface) grpc.ClientConnInterface { return data{conn, l} }

type data struct {
	grpc.ClientConnInterface
	log *Log
}

func (d data) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if !changes(method) {
		return d.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	}
	answered := d.log.used(event(ctx, method, args), method)
	err := d.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	answered(err)
	return err
}

func (d data) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := d.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	if err != nil || !changes(method) {
		return s, err
	}
	return &stream{ClientStream: s, log: d.log, method: method, ctx: ctx}, nil
}

// stream notes its first message, and the first answer. One goroutine may send while another receives, but nothing is received before the first was sent.
type stream struct {
	grpc.ClientStream
	log    *Log
	method string
	ctx    context.Context

	mu       sync.Mutex // guards answered
	answered func(error)
	begun    bool // by SendMsg alone
}

func (s *stream) SendMsg(m any) error {
	if s.begun {
		return s.ClientStream.SendMsg(m)
	}
	s.begun = true
	answered := s.log.used(event(s.ctx, s.method, m), s.method)
	err := s.ClientStream.SendMsg(m)
	if err != nil && !errors.Is(err, io.EOF) { // After io.EOF the status is received.
		answered(err)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered = answered
	return err
}

func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answered != nil {
		if errors.Is(err, io.EOF) {
			s.answered(nil)
		} else {
			s.answered(err)
		}
		s.answered = nil
	}
	return err
}
