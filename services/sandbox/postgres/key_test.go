package postgres_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coveyhq/covey/services/sandbox"
)

func TestRevokedKeysAreKeptForAsLongAsConfiguredAndWhatTheyDidStaysInTheAuditLog(t *testing.T) {
	dsn := migrated(t)
	s := open(t, dsn, "o", time.Minute)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for id, revoked := range map[string]string{"valid": "", "lately": "29 days", "long": "31 days", sandbox.BootstrapKey: "31 days"} {
		if _, err := s.InsertKey(t.Context(), sandbox.Key{ID: id, Tenant: "acme", Name: id, Scopes: []string{sandbox.ScopeRead}}, []byte(id)); err != nil {
			t.Fatal(err)
		}
		if revoked == "" {
			continue
		}
		if _, err := conn.Exec(t.Context(), "UPDATE sandbox.api_key SET revoke_time = now() - $2::interval WHERE id = $1", id, revoked); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.BeginAudit(t.Context(), sandbox.AuditEvent{Tenant: "acme", KeyID: "long", Method: "DeleteSandbox"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys, err := s.Keys(t.Context(), "acme", sandbox.Page{}, 10)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, k := range keys {
		left = append(left, k.ID)
	}
	slices.Sort(left)
	// The bootstrap key would be made anew of its file.
	if want := []string{sandbox.BootstrapKey, "lately", "valid"}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
	if events, err := s.Audit(t.Context(), sandbox.AuditFilter{KeyID: "long"}, 10); err != nil || len(events) != 1 {
		t.Errorf("what the key did: %v, %v", events, err)
	}
}
