package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/postgres/queries"
)

// noteUse is how exactly the last use of a key is kept; every call is one.
const noteUse = time.Minute

func decodeKey(r queries.Key) sandbox.Key {
	k := sandbox.Key{ID: r.ID, Tenant: r.TenantID, Name: r.Name, Scopes: r.Scopes, CreateTime: r.CreateTime}
	if r.LastUseTime != nil {
		k.LastUseTime = *r.LastUseTime
	}
	if r.RevokeTime != nil {
		k.RevokeTime = *r.RevokeTime
	}
	return k
}

// InsertKey implements sandbox.KeyStore.
func (s *Store) InsertKey(ctx context.Context, k sandbox.Key, hash []byte) (sandbox.Key, error) {
	row, err := s.q.InsertKey(ctx, queries.InsertKeyParams{ID: k.ID, TenantID: k.Tenant, Name: k.Name, Scopes: k.Scopes, Hash: hash})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "23505" {
		return sandbox.Key{}, &sandbox.Error{Kind: sandbox.Exists, Reason: "KEY_EXISTS", Message: "there is such a key already"}
	}
	return decodeKey(row), known(err)
}

// KeyByHash implements sandbox.KeyStore.
func (s *Store) KeyByHash(ctx context.Context, hash []byte) (sandbox.Key, error) {
	row, err := s.q.GetKeyByHash(ctx, hash)
	if err != nil {
		return sandbox.Key{}, missing(err, "KEY_NOT_FOUND", "no such key")
	}
	k := decodeKey(row)
	if time.Since(k.LastUseTime) < noteUse {
		return k, nil
	}
	return k, known(s.q.TouchKey(ctx, row.ID))
}

// Keys implements sandbox.KeyStore.
func (s *Store) Keys(ctx context.Context, tenant string, from sandbox.Page, limit int) ([]sandbox.Key, error) {
	p := queries.ListKeysParams{TenantID: tenant, RowLimit: int32(limit), BeforeID: from.BeforeID}
	if from.BeforeID != "" {
		p.BeforeTime = &from.BeforeTime
	}
	rows, err := s.q.ListKeys(ctx, p)
	keys := make([]sandbox.Key, len(rows))
	for i, r := range rows {
		keys[i] = decodeKey(r)
	}
	return keys, known(err)
}

// RevokeKey implements sandbox.KeyStore.
func (s *Store) RevokeKey(ctx context.Context, tenant, id string) (sandbox.Key, error) {
	row, err := s.q.RevokeKey(ctx, queries.RevokeKeyParams{ID: id, TenantID: tenant})
	return decodeKey(row), missing(err, "KEY_NOT_FOUND", "no key %s", id)
}
