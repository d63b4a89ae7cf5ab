package sandbox

import (
	"context"
	"time"
)

// Bounds of usage questions.
const (
	defaultUsageSpan = 30 * 24 * time.Hour
	maxUsageRows     = 100
)

// Use is what one sandbox used.
type Use struct {
	SandboxID string
	// Seconds that it ran, and those times its virtual CPUs and GiB of memory.
	Seconds, VCPUSeconds, GiBSeconds float64
}

// Usage is what a tenant's sandboxes used between two times.
type Usage struct {
	Start, End time.Time
	Total      Use
	// Count is how many ran; Most are those that used the most, at most 100.
	Count int
	Most  []Use
}

// Usage sums up what a tenant's sandboxes used. Zero times mean the last 30 days, and now.
func (s *Service) Usage(ctx context.Context, tenant string, start, end time.Time) (Usage, error) {
	if err := checkTenant(tenant); err != nil {
		return Usage{}, err
	}
	if end.IsZero() {
		end = time.Now()
	}
	if start.IsZero() {
		start = end.Add(-defaultUsageSpan)
	}
	if start.Year() < 1 {
		return Usage{}, field("start_time", "must be given where end_time is %s", end.UTC().Format(time.RFC3339))
	}
	if !start.Before(end) {
		return Usage{}, field("start_time", "must be before end_time %s, got %s", end.UTC().Format(time.RFC3339), start.UTC().Format(time.RFC3339))
	}
	return s.store.Usage(ctx, tenant, start, end, maxUsageRows)
}

// TenantStore keeps what tenants may have, have and have used.
type TenantStore interface {
	Limits(ctx context.Context, tenant string) (Limits, error)
	SetLimits(ctx context.Context, tenant string, l Limits) error
	// InUse counts sandboxes, virtual CPUs and memory.
	InUse(ctx context.Context, tenant string) (Amounts, error)
	// Usage sums up what the sandboxes of the tenant used between two times, and names as many as limit of those that used the most.
	Usage(ctx context.Context, tenant string, start, end time.Time, limit int) (Usage, error)
	// Now is the database's time.
	Now(ctx context.Context) (time.Time, error)
	// ClaimSnapshot counts a template that is about to be made, unless the quota forbids it. Stored is what the registry had
	// at a time after since; templates that were made meanwhile are counted too.
	ClaimSnapshot(ctx context.Context, c Claim, id string, stored Stored, since time.Time) error
	// SettleSnapshot ends a claim.
	SettleSnapshot(ctx context.Context, id string, made bool) error
}
