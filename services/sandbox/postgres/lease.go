package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/postgres/queries"
)

// Request implements sandbox.Store.
func (s *Store) Request(ctx context.Context, tenant, requestID string) (sandbox.Request, error) {
	row, err := s.q.GetRequest(ctx, queries.GetRequestParams{TenantID: tenant, RequestID: requestID})
	if err != nil {
		return sandbox.Request{}, missing(err, "REQUEST_NOT_FOUND", "no request %q", requestID)
	}
	r := sandbox.Request{
		Tenant: row.TenantID, ID: row.RequestID, Method: row.Method, Hash: row.Hash, WorkID: row.WorkID,
		SandboxIDs: row.SandboxIds, SnapshotID: row.SnapshotID, LeaseOwner: row.LeaseOwner,
	}
	if len(row.Outcome) > 0 {
		r.Outcome = &sandbox.Outcome{}
		if err := json.Unmarshal(row.Outcome, r.Outcome); err != nil {
			return r, fmt.Errorf("request %s: column outcome: %w", requestID, err)
		}
	}
	return r, nil
}

// ClaimRequest implements sandbox.Store.
func (s *Store) ClaimRequest(ctx context.Context, tenant, requestID string) (bool, error) {
	n, err := s.q.ClaimRequest(ctx, queries.ClaimRequestParams{Owner: s.owner, LeaseMs: s.lease, TenantID: tenant, RequestID: requestID})
	return n == 1, known(err)
}

// RenewRequests implements sandbox.Store.
func (s *Store) RenewRequests(ctx context.Context, workIDs []string) ([]string, error) {
	if len(workIDs) == 0 {
		return nil, nil
	}
	held, err := s.q.RenewRequests(ctx, queries.RenewRequestsParams{LeaseMs: s.lease, WorkIds: workIDs, Owner: s.owner})
	return held, known(err)
}

// ClaimStuck implements sandbox.Store.
func (s *Store) ClaimStuck(ctx context.Context, limit int) ([]sandbox.Sandbox, error) {
	return decodeAll(s.q.ClaimStuck(ctx, queries.ClaimStuckParams{Owner: s.owner, LeaseMs: s.lease, RowLimit: int32(limit)}))
}

// Renew implements sandbox.Store.
func (s *Store) Renew(ctx context.Context, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	rows, err := s.q.RenewLeases(ctx, queries.RenewLeasesParams{LeaseMs: s.lease, Ids: ids, Owner: s.owner})
	held := make([]string, len(rows))
	for i, r := range rows {
		held[i] = r.ID
	}
	return held, known(err)
}

// Release implements sandbox.Store.
func (s *Store) Release(ctx context.Context, workID string) error {
	return known(s.q.ReleaseLeases(ctx, queries.ReleaseLeasesParams{Owner: s.owner, WorkID: workID}))
}

// Chores implements sandbox.Store.
func (s *Store) Chores(ctx context.Context, limit int) ([]sandbox.Chore, error) {
	rows, err := s.q.ClaimChores(ctx, int32(limit))
	chores := make([]sandbox.Chore, len(rows))
	for i, r := range rows {
		chores[i] = sandbox.Chore{
			ID: r.ID, Kind: sandbox.ChoreKind(r.Kind), SandboxID: r.SandboxID, SnapshotID: r.SnapshotID, HostID: r.HostID,
			Attempts: int(r.Attempts), CreateTime: r.CreateTime,
		}
	}
	return chores, known(err)
}

// ChoreDone implements sandbox.Store.
func (s *Store) ChoreDone(ctx context.Context, id int64) error {
	return known(s.q.DeleteChore(ctx, id))
}

// Events implements sandbox.Store.
func (s *Store) Events(ctx context.Context, tenant, sandboxID string, after int64, limit int) ([]sandbox.Event, error) {
	rows, err := s.events(ctx, tenant, sandboxID, after, int32(limit))
	if err != nil {
		return nil, known(err)
	}
	events := make([]sandbox.Event, len(rows))
	for i, r := range rows {
		var row queries.Sandbox
		if err := json.Unmarshal(r.Body, &row); err != nil {
			return nil, fmt.Errorf("event %d of tenant %s: %w", r.Seq, tenant, err)
		}
		if events[i].Sandbox, err = decode(row); err != nil {
			return nil, err
		}
		events[i].Seq = r.Seq
	}
	return events, nil
}

// events are two queries, for each of which there is an index.
func (s *Store) events(ctx context.Context, tenant, sandboxID string, after int64, limit int32) ([]queries.ListEventsRow, error) {
	if sandboxID == "" {
		return s.q.ListEvents(ctx, queries.ListEventsParams{TenantID: tenant, After: after, RowLimit: limit})
	}
	rows, err := s.q.ListEventsOfSandbox(ctx, queries.ListEventsOfSandboxParams{TenantID: tenant, SandboxID: sandboxID, After: after, RowLimit: limit})
	all := make([]queries.ListEventsRow, len(rows))
	for i, r := range rows {
		all[i] = queries.ListEventsRow(r)
	}
	return all, err
}

// EventRange implements sandbox.Store.
func (s *Store) EventRange(ctx context.Context, tenant string) (first, last int64, err error) {
	r, err := s.q.EventRange(ctx, tenant)
	if errors.Is(err, pgx.ErrNoRows) {
		return 1, 0, nil
	}
	return r.First, r.Last, known(err)
}
