package rest

import (
	"context"
	"net/http"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// drainHost empties a host and streams what happens. The body may be left out, or be {}.
func (s *Server) drainHost(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	q := &sandboxv1.DrainHostRequest{}
	if err := decode(r.Body, q); err != nil {
		return err
	}
	q.HostId = params["host_id"]
	call, err := s.operations.DrainHost(ctx, q)
	if err != nil {
		return err
	}
	return events(s, w, r, cancel, call.Recv, func(*sandboxv1.DrainHostResponse) string { return "" })
}
