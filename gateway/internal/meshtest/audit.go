package meshtest

import (
	"context"

	"google.golang.org/protobuf/proto"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// WriteAuditEvents implements AuditService.
func (m *Mesh) WriteAuditEvents(_ context.Context, q *sandboxv1.WriteAuditEventsRequest) (*sandboxv1.WriteAuditEventsResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range q.GetRecords() {
		if m.audit[r.GetUid()] == nil {
			m.events = append(m.events, r.GetUid())
		}
		m.audit[r.GetUid()] = proto.CloneOf(r.GetEvent())
	}
	return &sandboxv1.WriteAuditEventsResponse{}, nil
}

// Audited are the events that were written, oldest first.
func (m *Mesh) Audited() []*sandboxv1.AuditEvent {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*sandboxv1.AuditEvent
	for _, uid := range m.events {
		out = append(out, proto.CloneOf(m.audit[uid]))
	}
	return out
}
