package rpc

import (
	"context"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/sandbox"
)

// auditing registers services whose calls that change something are written into the audit log.
//
// Chosen: the handlers of a service's descriptor wrapped, so that a method added to a service is audited without code here. Rejected: an
// interceptor of the whole server, which would see calls of services that are not ours.
type auditing struct {
	grpc.ServiceRegistrar
	log AuditLog
	Config
}

// AuditLog is where calls are written; see sandbox.AuditStore.
type AuditLog interface {
	BeginAudit(ctx context.Context, e sandbox.AuditEvent) (int64, error)
	EndAudit(ctx context.Context, id int64, target, code, reason string) error
}

// endTime bounds the writing of an event's end, which its caller's end does not stop.
const endTime = 5 * time.Second

// RegisterService implements grpc.ServiceRegistrar.
func (a auditing) RegisterService(desc *grpc.ServiceDesc, impl any) {
	own := *desc
	own.Methods = nil
	for _, m := range desc.Methods {
		if !reads(m.MethodName) {
			m.Handler = a.wrap(m.MethodName, m.Handler)
		}
		own.Methods = append(own.Methods, m)
	}
	own.Streams = nil
	for _, m := range desc.Streams {
		if !reads(m.StreamName) {
			m.Handler = a.wrapStream(m.StreamName, m.Handler)
		}
		own.Streams = append(own.Streams, m)
	}
	a.ServiceRegistrar.RegisterService(&own, impl)
}

// reads tells methods that change nothing, and a ping, which changes next to nothing and comes all the time.
func reads(method string) bool {
	for _, verb := range []string{"Get", "List", "Watch", "Explain", "Ping"} {
		if strings.HasPrefix(method, verb) {
			return true
		}
	}
	return false
}

type handler = func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error)

func (a auditing) wrap(method string, h handler) handler {
	return func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
		return h(srv, ctx, dec, func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			audited := func(ctx context.Context, req any) (any, error) { return a.audit(ctx, method, req, next) }
			if in == nil {
				return audited(ctx, req)
			}
			return in(ctx, req, info, audited)
		})
	}
}

func (a auditing) audit(ctx context.Context, method string, req any, next grpc.UnaryHandler) (any, error) {
	e := sandbox.AuditEvent{Tenant: a.Tenant(ctx), Method: method, Target: sandbox.Legible(target(req))}
	if a.KeyID != nil {
		e.KeyID = a.KeyID(ctx)
	}
	if a.RequestID != nil {
		e.RequestID = a.RequestID(ctx)
	}
	id, err := a.log.BeginAudit(ctx, e)
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	resp, err := next(ctx, req)
	ended, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	if e := a.log.EndAudit(ended, id, sandbox.Legible(target(resp)), codeName(err), apierr.Reason(err)); e != nil {
		a.Log.WarnContext(ctx, "end of a call is missing in the audit log", "audit_id", id, "method", method, "error", e)
	}
	return resp, err
}

func codeName(err error) string { return code.Code(status.Code(err)).String() }

// wrapStream audits a call with a stream of answers, whose one request names the target.
func (a auditing) wrapStream(method string, h grpc.StreamHandler) grpc.StreamHandler {
	return func(srv any, ss grpc.ServerStream) error {
		named := &namedStream{ServerStream: ss}
		_, err := a.audit(ss.Context(), method, nil, func(context.Context, any) (any, error) {
			err := h(srv, named)
			return named.first, err
		})
		return err
	}
}

// namedStream remembers the request.
type namedStream struct {
	grpc.ServerStream
	first any
}

func (s *namedStream) RecvMsg(m any) error {
	s.first = m
	return s.ServerStream.RecvMsg(m)
}

// target is what a message is about.
func target(m any) string {
	switch m := m.(type) {
	case interface{ GetSandboxId() string }:
		return m.GetSandboxId()
	case interface{ GetKeyId() string }:
		return m.GetKeyId()
	case interface{ GetHostId() string }:
		return m.GetHostId()
	case *sandboxv1.SetQuotaRequest:
		return m.GetTenantId()
	case *sandboxv1.CreateSandboxResponse:
		return m.GetSandbox().GetId()
	case *sandboxv1.CreateSnapshotResponse:
		return m.GetSnapshot().GetId()
	case *sandboxv1.CreateKeyResponse:
		return m.GetKey().GetId()
	}
	return ""
}

// auditor takes in what other daemons write.
type auditor struct {
	sandboxv1.UnimplementedAuditServiceServer
	Config
}

func (a *auditor) WriteAuditEvents(ctx context.Context, r *sandboxv1.WriteAuditEventsRequest) (*sandboxv1.WriteAuditEventsResponse, error) {
	events := make([]sandbox.AuditEvent, len(r.GetRecords()))
	for i, rec := range r.GetRecords() {
		e := rec.GetEvent()
		events[i] = sandbox.AuditEvent{
			UID: rec.GetUid(), Time: e.GetTime().AsTime(), Tenant: e.GetTenantId(), KeyID: e.GetKeyId(), RequestID: e.GetRequestId(), Method: e.GetMethod(),
			Target: e.GetTarget(), Detail: e.GetDetail(), Count: int64(e.GetCount()), Code: e.GetCode(), Reason: e.GetReason(),
		}
	}
	if err := a.Service.WriteAudit(ctx, events); err != nil {
		return nil, a.fail(ctx, err)
	}
	return &sandboxv1.WriteAuditEventsResponse{}, nil
}
