package postgres

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/postgres/queries"
)

func int8(n *int64) pgtype.Int8 {
	if n == nil {
		return pgtype.Int8{}
	}
	return pgtype.Int8{Int64: *n, Valid: true}
}

func pointer(n pgtype.Int8) *int64 {
	if !n.Valid {
		return nil
	}
	return &n.Int64
}

func decodeLimits(q queries.Quota) sandbox.Limits {
	return sandbox.Limits{
		Sandboxes: pointer(q.Sandboxes), VCPUs: pointer(q.Vcpus), MemoryMB: pointer(q.MemoryMb), Snapshots: pointer(q.Snapshots),
		SnapshotBytes: pointer(q.SnapshotBytes),
	}
}

// lockQuota comes before every other lock of the change, so that two changes never wait for each other.
func (t *step) lockQuota(ctx context.Context, c sandbox.Change) error {
	if c.Claim == nil {
		return nil
	}
	row, err := t.q.LockQuota(ctx, c.Claim.Tenant)
	t.limit = decodeLimits(row).Over(c.Claim.Default)
	return err
}

// claim counts after the lock was got: what others took before is committed and seen, what they give back may be a moment late.
func (t *step) claim(ctx context.Context, c sandbox.Change) error {
	if c.Claim == nil {
		return nil
	}
	inUse, err := t.q.SumInUse(ctx, c.Claim.Tenant)
	if err != nil {
		return err
	}
	return sandbox.Admit(c.Claim.Tenant, t.limit, decodeInUse(inUse), c.Claim.Ask)
}

func decodeInUse(r queries.SumInUseRow) sandbox.Amounts {
	return sandbox.Amounts{Sandboxes: r.Sandboxes, VCPUs: r.Vcpus, MemoryMB: r.MemoryMb}
}

// Limits implements sandbox.TenantStore.
func (s *Store) Limits(ctx context.Context, tenant string) (sandbox.Limits, error) {
	row, err := s.q.GetQuota(ctx, tenant)
	if errors.Is(err, pgx.ErrNoRows) {
		return sandbox.Limits{}, nil
	}
	return decodeLimits(row), known(err)
}

// SetLimits implements sandbox.TenantStore.
func (s *Store) SetLimits(ctx context.Context, tenant string, l sandbox.Limits) error {
	return known(s.q.SetQuota(ctx, queries.SetQuotaParams{
		TenantID: tenant, Sandboxes: int8(l.Sandboxes), Vcpus: int8(l.VCPUs), MemoryMb: int8(l.MemoryMB), Snapshots: int8(l.Snapshots),
		SnapshotBytes: int8(l.SnapshotBytes),
	}))
}

// InUse implements sandbox.TenantStore.
func (s *Store) InUse(ctx context.Context, tenant string) (sandbox.Amounts, error) {
	row, err := s.q.SumInUse(ctx, tenant)
	return decodeInUse(row), known(err)
}

// Now implements sandbox.TenantStore.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	t, err := s.q.Clock(ctx)
	return t, known(err)
}

// ClaimSnapshot implements sandbox.TenantStore.
func (s *Store) ClaimSnapshot(ctx context.Context, c sandbox.Claim, id string, stored sandbox.Stored, since time.Time) error {
	return known(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		q := s.q.WithTx(tx)
		row, err := q.LockQuota(ctx, c.Tenant)
		if err != nil {
			return err
		}
		claimed, err := q.ListSnapshotClaims(ctx, queries.ListSnapshotClaimsParams{TenantID: c.Tenant, Since: &since})
		if err != nil {
			return err
		}
		have := slices.Concat(stored.Templates, claimed)
		slices.Sort(have)
		have = slices.DeleteFunc(slices.Compact(have), func(h string) bool { return h == id })
		inUse := sandbox.Amounts{Snapshots: int64(len(have)), SnapshotBytes: stored.Bytes}
		if err := sandbox.Admit(c.Tenant, decodeLimits(row).Over(c.Default), inUse, c.Ask); err != nil {
			return err
		}
		return q.ClaimSnapshot(ctx, queries.ClaimSnapshotParams{SnapshotID: id, TenantID: c.Tenant})
	}))
}

// SettleSnapshot implements sandbox.TenantStore.
func (s *Store) SettleSnapshot(ctx context.Context, id string, made bool) error {
	if made {
		return known(s.q.FinishSnapshotClaim(ctx, id))
	}
	return known(s.q.DropSnapshotClaim(ctx, id))
}

// Usage implements sandbox.TenantStore.
func (s *Store) Usage(ctx context.Context, tenant string, start, end time.Time, limit int) (sandbox.Usage, error) {
	rows, err := s.q.SumUsage(ctx, queries.SumUsageParams{TenantID: tenant, Since: start, Until: end, RowLimit: int32(limit)})
	u := sandbox.Usage{Start: start, End: end, Most: make([]sandbox.Use, len(rows))}
	for i, r := range rows {
		u.Count, u.Total = int(r.Sandboxes), sandbox.Use{Seconds: r.AllSeconds, VCPUSeconds: r.AllVcpuSeconds, GiBSeconds: r.AllGibSeconds}
		u.Most[i] = sandbox.Use{SandboxID: r.SandboxID, Seconds: r.Seconds, VCPUSeconds: r.VcpuSeconds, GiBSeconds: r.GibSeconds}
	}
	return u, known(err)
}

// BeginAudit implements sandbox.AuditStore.
func (s *Store) BeginAudit(ctx context.Context, e sandbox.AuditEvent) (int64, error) {
	id, err := s.q.InsertAudit(ctx, queries.InsertAuditParams{TenantID: e.Tenant, KeyID: e.KeyID, RequestID: e.RequestID, Method: e.Method, Target: e.Target})
	return id, known(err)
}

// EndAudit implements sandbox.AuditStore.
func (s *Store) EndAudit(ctx context.Context, id int64, target, code, reason string) error {
	return known(s.q.FinishAudit(ctx, queries.FinishAuditParams{ID: id, Target: target, Code: code, Reason: reason}))
}

// WriteAudit implements sandbox.AuditStore.
func (s *Store) WriteAudit(ctx context.Context, events []sandbox.AuditEvent) error {
	var p queries.WriteAuditParams
	for _, e := range events {
		p.Uids, p.Times, p.TenantIds, p.KeyIds = append(p.Uids, e.UID), append(p.Times, e.Time), append(p.TenantIds, e.Tenant), append(p.KeyIds, e.KeyID)
		p.RequestIds, p.Methods, p.Targets = append(p.RequestIds, e.RequestID), append(p.Methods, e.Method), append(p.Targets, e.Target)
		p.Details, p.Counts = append(p.Details, e.Detail), append(p.Counts, e.Count)
		p.Codes, p.Reasons = append(p.Codes, e.Code), append(p.Reasons, e.Reason)
	}
	return known(s.q.WriteAudit(ctx, p))
}

// Audit implements sandbox.AuditStore.
func (s *Store) Audit(ctx context.Context, f sandbox.AuditFilter, limit int) ([]sandbox.AuditEvent, error) {
	p := queries.ListAuditParams{TenantID: f.Tenant, Target: f.Target, KeyID: f.KeyID, Method: f.Method, Code: f.Code, Before: f.Before, RowLimit: int32(limit)}
	if !f.Start.IsZero() {
		p.Since = &f.Start
	}
	if !f.End.IsZero() {
		p.Until = &f.End
	}
	rows, err := s.q.ListAudit(ctx, p)
	events := make([]sandbox.AuditEvent, len(rows))
	for i, r := range rows {
		events[i] = sandbox.AuditEvent{
			ID: r.ID, UID: r.Uid, Time: r.Time, Tenant: r.TenantID, KeyID: r.KeyID, RequestID: r.RequestID, Method: r.Method, Target: r.Target,
			Detail: r.Detail, Count: r.Count, Code: r.Code, Reason: r.Reason,
		}
	}
	return events, known(err)
}
