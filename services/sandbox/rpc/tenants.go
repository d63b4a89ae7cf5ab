package rpc

import (
	"context"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/sandbox"
)

type tenants struct {
	sandboxv1.UnimplementedTenantServiceServer
	Config
}

// allTenants asks for the audit log of all.
const allTenants = "-"

// whose is the tenant that is meant: the caller's, or another one where the caller is an administrator.
func (t *tenants) whose(ctx context.Context, named string) (string, error) {
	own := t.Tenant(ctx)
	if named == "" || named == own {
		return own, nil
	}
	return named, t.adminOnly(ctx)
}

func (t *tenants) adminOnly(ctx context.Context) error {
	if t.Admin(ctx) {
		return nil
	}
	return &sandbox.Error{Kind: sandbox.Denied, Reason: "ADMIN_ONLY", Message: "this needs a key with the admin scope"}
}

func (t *tenants) GetUsage(ctx context.Context, r *sandboxv1.GetUsageRequest) (*sandboxv1.GetUsageResponse, error) {
	tenant, err := t.whose(ctx, r.GetTenantId())
	if err != nil {
		return nil, t.fail(ctx, err)
	}
	from, err := fromStamp("start_time", r.GetStartTime())
	if err != nil {
		return nil, t.fail(ctx, err)
	}
	to, err := fromStamp("end_time", r.GetEndTime())
	if err != nil {
		return nil, t.fail(ctx, err)
	}
	u, err := t.Service.Usage(ctx, tenant, from, to)
	if err != nil {
		return nil, t.fail(ctx, err)
	}
	out := &sandboxv1.GetUsageResponse{
		TenantId: tenant, StartTime: stamp(u.Start), EndTime: stamp(u.End), VcpuSeconds: u.Total.VCPUSeconds, GibSeconds: u.Total.GiBSeconds,
		SandboxCount: uint32(u.Count),
	}
	for _, x := range u.Most {
		out.Sandboxes = append(out.Sandboxes, &sandboxv1.SandboxUsage{
			SandboxId: x.SandboxID, VcpuSeconds: x.VCPUSeconds, GibSeconds: x.GiBSeconds, RunningSeconds: x.Seconds,
		})
	}
	return out, nil
}

// fromStamp keeps out times that no database knows.
func fromStamp(name string, p *timestamppb.Timestamp) (time.Time, error) {
	if p == nil {
		return time.Time{}, nil
	}
	if err := p.CheckValid(); err != nil {
		return time.Time{}, &sandbox.Error{Kind: sandbox.Invalid, Reason: "INVALID_FIELD", Field: name, Message: "must be a time between the years 1 and 9999"}
	}
	return p.AsTime(), nil
}

func (t *tenants) GetQuota(ctx context.Context, r *sandboxv1.GetQuotaRequest) (*sandboxv1.GetQuotaResponse, error) {
	tenant, err := t.whose(ctx, r.GetTenantId())
	if err != nil {
		return nil, t.fail(ctx, err)
	}
	limit, inUse, err := t.Service.Quota(ctx, tenant)
	if err != nil {
		return nil, t.fail(ctx, err)
	}
	return &sandboxv1.GetQuotaResponse{TenantId: tenant, Limits: toQuota(limit), InUse: toQuota(inUse)}, nil
}

func (t *tenants) SetQuota(ctx context.Context, r *sandboxv1.SetQuotaRequest) (*sandboxv1.SetQuotaResponse, error) {
	if err := t.adminOnly(ctx); err != nil {
		return nil, t.fail(ctx, err)
	}
	l, err := fromQuota(r.GetLimits())
	if err != nil {
		return nil, t.fail(ctx, err)
	}
	now, err := t.Service.SetQuota(ctx, r.GetTenantId(), l)
	if err != nil {
		return nil, t.fail(ctx, err)
	}
	return &sandboxv1.SetQuotaResponse{TenantId: r.GetTenantId(), Limits: toQuota(now)}, nil
}

// maxLimit is far beyond what there is, and far below what sums could overflow with.
const maxLimit = 1 << 60

func fromQuota(q *sandboxv1.Quota) (sandbox.Limits, error) {
	var l sandbox.Limits
	if q == nil {
		return l, nil
	}
	small := func(v *uint32) *int64 {
		if v == nil {
			return nil
		}
		n := int64(*v)
		return &n
	}
	large := func(v *uint64) *int64 {
		if v == nil {
			return nil
		}
		n := int64(min(*v, maxLimit))
		return &n
	}
	for name, v := range map[string]*uint64{"memory_mb": q.MemoryMb, "snapshot_bytes": q.SnapshotBytes} {
		if v != nil && *v > maxLimit {
			return l, &sandbox.Error{Kind: sandbox.Invalid, Reason: "INVALID_FIELD", Field: "limits." + name, Message: "must be at most 2^60; 0 means no bound"}
		}
	}
	l.Sandboxes, l.VCPUs, l.Snapshots = small(q.Sandboxes), small(q.Vcpus), small(q.Snapshots)
	l.MemoryMB, l.SnapshotBytes = large(q.MemoryMb), large(q.SnapshotBytes)
	return l, nil
}

func toQuota(a sandbox.Amounts) *sandboxv1.Quota {
	sandboxes, vcpus, snapshots := uint32(a.Sandboxes), uint32(a.VCPUs), uint32(a.Snapshots)
	memory, bytes := uint64(a.MemoryMB), uint64(a.SnapshotBytes)
	return &sandboxv1.Quota{Sandboxes: &sandboxes, Vcpus: &vcpus, MemoryMb: &memory, Snapshots: &snapshots, SnapshotBytes: &bytes}
}

func (t *tenants) ListAuditEvents(ctx context.Context, r *sandboxv1.ListAuditEventsRequest) (*sandboxv1.ListAuditEventsResponse, error) {
	if err := t.adminOnly(ctx); err != nil {
		return nil, t.fail(ctx, err)
	}
	f := sandbox.AuditFilter{Tenant: r.GetTenantId(), Target: r.GetTarget(), KeyID: r.GetKeyId(), Method: r.GetMethod(), Code: r.GetCode()}
	switch f.Tenant {
	case "":
		f.Tenant = t.Tenant(ctx)
	case allTenants:
		f.Tenant = ""
	}
	var err error
	if f.Start, err = fromStamp("start_time", r.GetStartTime()); err != nil {
		return nil, t.fail(ctx, err)
	}
	if f.End, err = fromStamp("end_time", r.GetEndTime()); err != nil {
		return nil, t.fail(ctx, err)
	}
	events, next, err := t.Service.AuditLog(ctx, f, r.GetPageSize(), r.GetPageToken())
	if err != nil {
		return nil, t.fail(ctx, err)
	}
	out := &sandboxv1.ListAuditEventsResponse{NextPageToken: next}
	for _, e := range events {
		out.Events = append(out.Events, &sandboxv1.AuditEvent{
			Id: e.ID, Time: stamp(e.Time), TenantId: e.Tenant, KeyId: e.KeyID, RequestId: e.RequestID, Method: e.Method, Target: e.Target,
			Code: e.Code, Reason: e.Reason, Detail: e.Detail, Count: uint32(min(max(1, e.Count), math.MaxUint32)),
		})
	}
	return out, nil
}
