package sandbox

import (
	"context"
	"fmt"
)

// Amounts are what a tenant has, asks for, or may have at once. As limits, 0 means no bound.
type Amounts struct {
	// Sandboxes that are not final, paused ones included.
	Sandboxes int64 `yaml:"sandboxes"`
	// VCPUs and MemoryMB (MiB) of those that are neither final nor paused.
	VCPUs    int64 `yaml:"vcpus"`
	MemoryMB int64 `yaml:"memory_mb"`
	// Snapshots are templates; SnapshotBytes what is stored of them and of paused sandboxes.
	Snapshots     int64 `yaml:"snapshots"`
	SnapshotBytes int64 `yaml:"snapshot_bytes"`
}

// Limits are what one tenant may have; nil means the mesh's default.
type Limits struct {
	Sandboxes, VCPUs, MemoryMB, Snapshots, SnapshotBytes *int64
}

// Over fills in the defaults.
func (l Limits) Over(def Amounts) Amounts {
	for _, f := range []struct {
		own *int64
		to  *int64
	}{
		{l.Sandboxes, &def.Sandboxes}, {l.VCPUs, &def.VCPUs}, {l.MemoryMB, &def.MemoryMB},
		{l.Snapshots, &def.Snapshots}, {l.SnapshotBytes, &def.SnapshotBytes},
	} {
		if f.own != nil {
			*f.to = *f.own
		}
	}
	return def
}

// Claim is what a change takes of a tenant's quota.
type Claim struct {
	Tenant string
	Ask    Amounts
	// Default limits, for what the tenant has none of its own.
	Default Amounts
}

// Admit is nil if a tenant that has inUse may take ask in addition, else the error that says why not.
func Admit(tenant string, limit, inUse, ask Amounts) error {
	for _, f := range []struct {
		name, what         string
		limit, inUse, asks int64
	}{
		{"sandboxes", "sandboxes", limit.Sandboxes, inUse.Sandboxes, ask.Sandboxes},
		{"vcpus", "virtual CPUs", limit.VCPUs, inUse.VCPUs, ask.VCPUs},
		{"memory_mb", "MiB of memory", limit.MemoryMB, inUse.MemoryMB, ask.MemoryMB},
		{"snapshots", "templates", limit.Snapshots, inUse.Snapshots, ask.Snapshots},
		{"snapshot_bytes", "bytes of snapshots", limit.SnapshotBytes, inUse.SnapshotBytes, ask.SnapshotBytes},
	} {
		if f.asks <= 0 || f.limit <= 0 || f.inUse+f.asks <= f.limit {
			continue
		}
		return &Error{
			Kind: Exhausted, Reason: "QUOTA_EXCEEDED",
			Message: fmt.Sprintf("quota %s of tenant %s exceeded: the limit is %d %s, %d are in use, %d more were asked for", f.name, tenant, f.limit, f.what, f.inUse, f.asks),
			Meta: map[string]string{
				"quota": f.name, "limit": fmt.Sprint(f.limit), "in_use": fmt.Sprint(f.inUse), "asked": fmt.Sprint(f.asks), "tenant_id": tenant,
			},
		}
	}
	return nil
}

// claim is what sandboxes take. Those that were paused take only what pausing had given back.
func (s *Service) claim(rows ...Sandbox) *Claim {
	c := &Claim{Tenant: rows[0].Tenant, Default: s.quota}
	for _, sb := range rows {
		if sb.State != Resuming {
			c.Ask.Sandboxes++
		}
		c.Ask.VCPUs += int64(sb.VCPUs)
		c.Ask.MemoryMB += int64(sb.MemoryMB)
	}
	return c
}

// Quota reads what a tenant may have and what it has.
func (s *Service) Quota(ctx context.Context, tenant string) (limit, inUse Amounts, err error) {
	if err := checkTenant(tenant); err != nil {
		return limit, inUse, err
	}
	own, err := s.store.Limits(ctx, tenant)
	if err != nil {
		return limit, inUse, err
	}
	if inUse, err = s.store.InUse(ctx, tenant); err != nil {
		return limit, inUse, err
	}
	stored, err := s.snapshots.Stored(ctx, tenant)
	inUse.Snapshots, inUse.SnapshotBytes = int64(len(stored.Templates)), stored.Bytes
	return own.Over(s.quota), inUse, err
}

// SetQuota sets what a tenant may have. What it has already is not taken from it.
func (s *Service) SetQuota(ctx context.Context, tenant string, l Limits) (Amounts, error) {
	if err := checkTenant(tenant); err != nil {
		return Amounts{}, err
	}
	return l.Over(s.quota), s.store.SetLimits(ctx, tenant, l)
}

func checkTenant(tenant string) error {
	if !tenantID.MatchString(tenant) {
		return field("tenant_id", "must be 1 to 63 characters of [a-z0-9-], got %q", clip(tenant))
	}
	return nil
}

// Stored is what the registry has of a tenant.
type Stored struct {
	// Templates are their ids.
	Templates []string
	// Bytes are those of all that its snapshots name, each counted once: what two of them share is not free.
	Bytes int64
}

// claimSnapshot counts a template against the tenant's quota before it is made. Where there is no quota nobody is asked.
func (s *Service) claimSnapshot(ctx context.Context, tenant, id string) error {
	own, err := s.store.Limits(ctx, tenant)
	if err != nil {
		return err
	}
	limit := own.Over(s.quota)
	if limit.Snapshots <= 0 && limit.SnapshotBytes <= 0 {
		return nil
	}
	since, err := s.store.Now(ctx)
	if err != nil {
		return err
	}
	stored, err := s.snapshots.Stored(ctx, tenant)
	if err != nil {
		return err
	}
	c := Claim{Tenant: tenant, Default: s.quota, Ask: Amounts{Snapshots: 1, SnapshotBytes: 1}}
	return s.store.ClaimSnapshot(ctx, c, id, stored, since)
}

// settleSnapshot ends a claim: the registry has the template, or it was not made.
func (s *Service) settleSnapshot(ctx context.Context, id string, made bool) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	if err := s.store.SettleSnapshot(ctx, id, made); err != nil {
		s.log.Warn("claim of a template stays for a while", "snapshot_id", id, "error", err)
	}
}
