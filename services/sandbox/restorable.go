package sandbox

import (
	"context"
	"slices"
	"strings"
)

// Verdict is what the scheduler says of one host.
type Verdict struct {
	HostID string
	Fits   bool
	// Reasons are sentences.
	Reasons []string
}

// Restorable says where a snapshot can be restored.
type Restorable struct {
	Manifest Manifest
	// Verdicts by host id.
	Verdicts []Verdict
}

// CanRestore says for every host whether a tenant's snapshot, by id or template name, can be restored there.
func (s *Service) CanRestore(ctx context.Context, tenant, snapshot string) (Restorable, error) {
	if !templateName.MatchString(snapshot) && !snapshotID.MatchString(snapshot) {
		return Restorable{}, field("snapshot_id", `must be a template's name, or "snap_" and 26 characters, got %q`, clip(snapshot))
	}
	m, err := s.snapshots.Manifest(ctx, tenant, snapshot)
	if err != nil {
		return Restorable{}, err
	}
	list, err := s.scheduler.Explain(ctx, PlaceRequest{
		Tenant: tenant, VCPUs: m.VCPUs, MemoryMB: m.MemoryMB, DiskMB: m.DiskMB, SnapshotID: m.ID, Needs: m.Needs,
	})
	if err != nil {
		return Restorable{}, err
	}
	for i, v := range list {
		if v.Fits && !m.Durable && !slices.Contains(m.HostIDs, v.HostID) {
			list[i].Reasons = append([]string{"the snapshot is not yet in the registry: until it is, its data comes from the host that made it"}, v.Reasons...)
		}
	}
	slices.SortFunc(list, func(a, b Verdict) int { return strings.Compare(a.HostID, b.HostID) })
	return Restorable{m, list}, nil
}
