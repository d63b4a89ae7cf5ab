package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/postgres/queries"
)

// maxRetries bounds how often a transaction is done again that PostgreSQL has ended to let another go on.
const maxRetries = 5

// Apply implements sandbox.Store.
func (s *Store) Apply(ctx context.Context, c sandbox.Change) ([]sandbox.Sandbox, error) {
	for try := 0; ; try++ {
		rows, err := s.applyOnce(ctx, c)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01") && try < maxRetries {
			continue
		}
		if seen := (*sandbox.Seen)(nil); errors.As(err, &seen) {
			if seen.Request, err = s.Request(ctx, c.Begin.Tenant, c.Begin.ID); err == nil {
				err = seen
			}
		}
		return rows, known(err)
	}
}

func (s *Store) applyOnce(ctx context.Context, c sandbox.Change) ([]sandbox.Sandbox, error) {
	var rows []sandbox.Sandbox
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		t := step{s: s, q: s.q.WithTx(tx)}
		for _, do := range []func(context.Context, sandbox.Change) error{t.lockQuota, t.begin, t.claim, t.require, t.apart, t.insert, t.update, t.receipts, t.finish, t.forget, t.chores} {
			if err := do(ctx, c); err != nil {
				return err
			}
		}
		rows = t.rows
		return nil
	})
	return rows, err
}

// step is a change being done in a transaction.
type step struct {
	s    *Store
	q    *queries.Queries
	rows []sandbox.Sandbox
	// limit is the quota of the change's claim.
	limit sandbox.Amounts
}

func (t *step) begin(ctx context.Context, c sandbox.Change) error {
	r := c.Begin
	if r == nil {
		return nil
	}
	p := queries.InsertRequestParams{
		TenantID: r.Tenant, RequestID: r.ID, Method: r.Method, Hash: r.Hash, WorkID: r.WorkID, SandboxIds: r.SandboxIDs,
		SnapshotID: r.SnapshotID, LeaseOwner: r.LeaseOwner, LeaseMs: t.s.lease,
	}
	if r.Outcome != nil {
		var err error
		if p.Outcome, err = encodeOutcome(*r.Outcome); err != nil {
			return err
		}
	}
	n, err := t.q.InsertRequest(ctx, p)
	if err == nil && n == 0 {
		return &sandbox.Seen{}
	}
	return err
}

func (t *step) require(ctx context.Context, c sandbox.Change) error {
	for _, sb := range c.Require {
		_, err := t.q.RequireSandbox(ctx, queries.RequireSandboxParams{ID: sb.ID, Version: sb.Version})
		if errors.Is(err, pgx.ErrNoRows) {
			return sandbox.ErrConflict
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// apart looks under a lock that all of one anti-affinity share, so that of two that are placed at once the second sees the first.
func (t *step) apart(ctx context.Context, c sandbox.Change) error {
	if !c.Apart {
		return nil
	}
	for _, sb := range c.Update {
		if err := t.q.LockAntiAffinity(ctx, queries.LockAntiAffinityParams{TenantID: sb.Tenant, AntiAffinity: sb.AntiAffinity}); err != nil {
			return err
		}
		rows, err := t.q.ListApart(ctx, queries.ListApartParams{TenantID: sb.Tenant, AntiAffinity: sb.AntiAffinity})
		if err != nil {
			return err
		}
		if slices.ContainsFunc(rows, func(o queries.Sandbox) bool { return o.ID != sb.ID && o.HostID == sb.HostID }) {
			return sandbox.ErrCrowded
		}
	}
	return nil
}

func (t *step) insert(ctx context.Context, c sandbox.Change) error {
	for _, sb := range c.Insert {
		e, err := encode(sb)
		if err != nil {
			return err
		}
		row, err := t.q.InsertSandbox(ctx, queries.InsertSandboxParams{
			ID: sb.ID, TenantID: sb.Tenant, State: string(sb.State), Reason: sb.Reason, Spec: e.spec, Metadata: e.metadata,
			HostID: sb.HostID, SourceSnapshotID: sb.SourceSnapshotID, MaxLifetimeSec: int64(sb.MaxLifetimeSec),
			WorkID: sb.Work.ID, Work: e.work, LeaseOwner: sb.LeaseOwner, LeaseMs: t.s.lease,
		})
		if err := t.keep(row, err); err != nil {
			return err
		}
	}
	return nil
}

func (t *step) update(ctx context.Context, c sandbox.Change) error {
	for _, sb := range c.Update {
		e, err := encode(sb)
		if err != nil {
			return err
		}
		p := queries.UpdateSandboxParams{
			ID: sb.ID, Version: sb.Version, State: string(sb.State), Reason: sb.Reason, HostID: sb.HostID,
			SnapshotID: sb.SnapshotID, BaseSnapshotID: sb.BaseSnapshotID, SourceSnapshotID: sb.SourceSnapshotID,
			Durable: sb.Durable, WorkID: sb.Work.ID, Work: e.work, WorkError: e.workError, LeaseOwner: sb.LeaseOwner, LeaseMs: t.s.lease,
		}
		if !sb.LastActiveTime.IsZero() {
			p.LastActiveTime = &sb.LastActiveTime
		}
		if at := c.Since[sb.ID]; !at.IsZero() {
			p.Since = &at
		}
		row, err := t.q.UpdateSandbox(ctx, p)
		if errors.Is(err, pgx.ErrNoRows) {
			return sandbox.ErrConflict
		}
		if err := t.keep(row, err); err != nil {
			return err
		}
	}
	return nil
}

func (t *step) keep(row queries.Sandbox, err error) error {
	if err != nil {
		return err
	}
	sb, err := decode(row)
	t.rows = append(t.rows, sb)
	return err
}

func (t *step) receipts(ctx context.Context, c sandbox.Change) error {
	for id, body := range c.Receipts {
		if err := t.q.UpsertReceipt(ctx, queries.UpsertReceiptParams{SandboxID: id, Body: body}); err != nil {
			return err
		}
	}
	return nil
}

func (t *step) finish(ctx context.Context, c sandbox.Change) error {
	f := c.Finish
	if f == nil {
		return nil
	}
	out := f.Outcome
	if f.OfRows {
		out.Sandboxes = t.rows
	}
	b, err := encodeOutcome(out)
	if err != nil {
		return err
	}
	if err := t.q.FinishRequest(ctx, queries.FinishRequestParams{TenantID: f.Tenant, RequestID: f.RequestID, Outcome: b}); err != nil {
		return err
	}
	return t.q.NotifyRequest(ctx, queries.NotifyRequestParams{SandboxID: f.SandboxID, TenantID: f.Tenant})
}

func (t *step) forget(ctx context.Context, c sandbox.Change) error {
	for _, ch := range c.Forget {
		n, err := t.q.ForgetChore(ctx, queries.ForgetChoreParams{Kind: string(ch.Kind), SnapshotID: ch.SnapshotID})
		if err != nil {
			return err
		}
		if n == 0 {
			return sandbox.ErrConflict
		}
	}
	return nil
}

func (t *step) chores(ctx context.Context, c sandbox.Change) error {
	for _, ch := range c.Chores {
		err := t.q.InsertChore(ctx, queries.InsertChoreParams{Kind: string(ch.Kind), SandboxID: ch.SandboxID, SnapshotID: ch.SnapshotID, HostID: ch.HostID, AfterMs: ch.After.Milliseconds()})
		if err != nil {
			return err
		}
	}
	return nil
}

// encodeOutcome leaves environments out: an answer has none, and they may hold secrets.
func encodeOutcome(out sandbox.Outcome) (json.RawMessage, error) {
	out.Sandboxes = slices.Clone(out.Sandboxes)
	for i := range out.Sandboxes {
		out.Sandboxes[i].Env = nil
	}
	return json.Marshal(out)
}
