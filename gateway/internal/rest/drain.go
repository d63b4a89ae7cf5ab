package rest

import (
	"context"
	"net/http"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// drainHost empties a host and streams what happens. The request has no body that says anything.
func (s *Server) drainHost(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	call, err := s.operations.DrainHost(ctx, &sandboxv1.DrainHostRequest{HostId: params["host_id"]})
	if err != nil {
		return err
	}
	return events(s, w, r, cancel, call.Recv, func(*sandboxv1.DrainHostResponse) string { return "" })
}
