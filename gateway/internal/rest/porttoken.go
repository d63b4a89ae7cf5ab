package rest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/gateway/internal/audit"
	"github.com/coveyhq/covey/gateway/internal/ports"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// Lifetimes of tokens, seconds.
const (
	tokenTTL    = 3600
	maxTokenTTL = 86400
)

// portToken makes a token for a port of one of the caller's sandboxes.
func (s *Server) portToken(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	n, err := portNumber(params["port"])
	if err != nil {
		return err
	}
	ttl, err := readTTL(r.Body)
	if err != nil {
		return err
	}
	if err := s.Keys.Check(r.Context(), guestv1.PortService_Connect_FullMethodName); err != nil {
		return err
	}
	p := ports.Port{Sandbox: params["sandbox_id"], Number: n}
	if _, err := s.sandboxes.GetSandbox(r.Context(), &sandboxv1.GetSandboxRequest{SandboxId: p.Sandbox}); err != nil {
		return err
	}
	entry, err := s.Audit.Begin(r.Context(), audit.Of(r.Context(), "CreatePortToken", p.Sandbox, fmt.Sprintf("port %d, for %d s", p.Number, ttl)))
	if err != nil {
		return err
	}
	entry.Finish(r.Context(), nil) // Nothing can go wrong any more.
	caller, _ := access.From(r.Context())
	expires := time.Now().Add(time.Duration(ttl) * time.Second).Truncate(time.Second)
	token := s.Ports.Token(ports.Grant{Tenant: caller.Tenant, KeyID: caller.KeyID, Port: p, Expires: expires})
	query := "/?" + tokenQuery + "=" + token
	writeJSON(w, http.StatusOK, map[string]any{
		"token": token, "expire_time": expires.UTC().Format(time.RFC3339),
		"url": scheme(r) + "://" + s.portHost(r, p) + query, "path_url": scheme(r) + "://" + r.Host + p.Path() + query,
	})
	return nil
}

// readTTL reads the body of a request for a token.
func readTTL(body io.Reader) (int, error) {
	b, err := io.ReadAll(body)
	if err != nil {
		return 0, err
	}
	q := struct {
		TTLSec *int `json:"ttl_sec"`
	}{}
	if b = bytes.TrimSpace(b); len(b) > 0 {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&q); err != nil {
			return 0, malformed(err.Error())
		}
		if d.More() || b[0] != '{' {
			return 0, malformed("one object is expected")
		}
	}
	switch {
	case q.TTLSec == nil || *q.TTLSec == 0:
		return tokenTTL, nil
	case *q.TTLSec < 0 || *q.TTLSec > maxTokenTTL:
		return 0, apierr.Field("ttl_sec", fmt.Sprintf("must be 1 to %d, or 0 for %d, got %d", maxTokenTTL, tokenTTL, *q.TTLSec))
	}
	return *q.TTLSec, nil
}
