package machine

import (
	"context"
	"sync"
	"testing"
)

// spans remembers which spans were begun within which, and which have ended.
type spans struct {
	mu            sync.Mutex // guards all
	parent, ended map[string]string
}

type spanKey struct{}

func (s *spans) Span(ctx context.Context, name string, _ ...string) (context.Context, func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parent[name], _ = ctx.Value(spanKey{}).(string)
	return context.WithValue(ctx, spanKey{}, name), func(error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended[name] = name
	}
}

func TestAStartIsTracedStepByStepToTheFirstFaultAndTheGuest(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	s := &spans{parent: map[string]string{}, ended: map[string]string{}}
	h.tracer = s
	start(t, h, spec("sb_1"))
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, parent := range map[string]string{
		"slot": "start", "disk": "start", "pager": "start", "vmm": "start", "guest": "start", "first_fault": "vmm",
	} {
		name, parent = "hostagent."+name, "hostagent."+parent
		if s.parent[name] != parent || s.ended[name] == "" {
			t.Errorf("%s is within %q, ended: %t", name, s.parent[name], s.ended[name] != "")
		}
	}
	for name := range s.parent {
		if s.ended[name] == "" {
			t.Errorf("%s never ends", name)
		}
	}
}
