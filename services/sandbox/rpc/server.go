package rpc

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/sandbox"
)

// Config is what the services need.
type Config struct {
	Service *sandbox.Service
	Keys    *sandbox.Keys
	Log     *slog.Logger
	// Tenant is whose request it is.
	Tenant func(context.Context) string
	// Admin tells whether the request's key has the admin scope.
	Admin func(context.Context) bool
	// KeyID and RequestID name the request's key and the request in the audit log; nil where they are not known.
	KeyID, RequestID func(context.Context) string
	// Audit is where calls that change something are written; nil means nowhere.
	Audit AuditLog
}

// Register adds the services to a server.
func Register(r grpc.ServiceRegistrar, c Config) {
	inside := r
	if c.Audit != nil {
		r = auditing{r, c.Audit, c}
	}
	sandboxv1.RegisterSandboxServiceServer(r, &sandboxes{Config: c})
	sandboxv1.RegisterTenantServiceServer(r, &tenants{Config: c})
	sandboxv1.RegisterLocatorServiceServer(inside, &locator{Config: c})
	sandboxv1.RegisterAuditServiceServer(inside, &auditor{Config: c})
	sandboxv1.RegisterKeyServiceServer(r, &keys{Config: c})
	sandboxv1.RegisterOperationsServiceServer(r, &operations{Config: c})
}

// fail is an answer's error.
func (c *Config) fail(ctx context.Context, err error) error {
	return apierr.From(ctx, c.Log, "sandboxd", err)
}

type sandboxes struct {
	sandboxv1.UnimplementedSandboxServiceServer
	Config
}

func (s *sandboxes) CreateSandbox(ctx context.Context, r *sandboxv1.CreateSandboxRequest) (*sandboxv1.CreateSandboxResponse, error) {
	if opensRanges(r.GetNetwork().GetAllowCidrs()) && !s.Admin(ctx) {
		return nil, apierr.E(codes.PermissionDenied, "SCOPE_REQUIRED", "network.allow_cidrs may be set by keys with scope admin only", "field", "network.allow_cidrs", "scope", sandbox.ScopeAdmin)
	}
	sb, err := s.Service.Create(ctx, s.Tenant(ctx), fromCreate(r))
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &sandboxv1.CreateSandboxResponse{Sandbox: toSandbox(sb)}, nil
}

// opensRanges tells a list of ranges that a sandbox would be let into. What is public it reaches anyway: the list is for private ranges and the
// hosts' own addresses, which are not a tenant's to open. Lists that are not well formed are refused as such later.
func opensRanges(cidrs []string) bool {
	return len(cidrs) > 0 && !slices.ContainsFunc(cidrs, func(c string) bool {
		p, err := netip.ParsePrefix(c)
		return err != nil || !p.Addr().Is4()
	})
}

func (s *sandboxes) GetSandbox(ctx context.Context, r *sandboxv1.GetSandboxRequest) (*sandboxv1.GetSandboxResponse, error) {
	sb, err := s.Service.Get(ctx, s.Tenant(ctx), r.GetSandboxId())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &sandboxv1.GetSandboxResponse{Sandbox: toSandbox(sb)}, nil
}

func (s *sandboxes) ListSandboxes(ctx context.Context, r *sandboxv1.ListSandboxesRequest) (*sandboxv1.ListSandboxesResponse, error) {
	rows, next, err := s.Service.List(ctx, s.Tenant(ctx), sandbox.ListRequest{
		States: fromStates(r.GetStates()), Metadata: r.GetMetadata(), Labels: r.GetLabel(), PageSize: r.GetPageSize(), PageToken: r.GetPageToken(),
	})
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &sandboxv1.ListSandboxesResponse{Sandboxes: toSandboxes(rows), NextPageToken: next}, nil
}

func (s *sandboxes) DeleteSandbox(ctx context.Context, r *sandboxv1.DeleteSandboxRequest) (*sandboxv1.DeleteSandboxResponse, error) {
	sb, err := s.Service.Delete(ctx, s.Tenant(ctx), r.GetSandboxId(), r.GetRequestId())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &sandboxv1.DeleteSandboxResponse{Sandbox: toSandbox(sb)}, nil
}

func (s *sandboxes) PauseSandbox(ctx context.Context, r *sandboxv1.PauseSandboxRequest) (*sandboxv1.PauseSandboxResponse, error) {
	sb, err := s.Service.Pause(ctx, s.Tenant(ctx), r.GetSandboxId(), r.GetRequestId())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &sandboxv1.PauseSandboxResponse{Sandbox: toSandbox(sb)}, nil
}

func (s *sandboxes) ResumeSandbox(ctx context.Context, r *sandboxv1.ResumeSandboxRequest) (*sandboxv1.ResumeSandboxResponse, error) {
	sb, err := s.Service.Resume(ctx, s.Tenant(ctx), sandbox.ResumeRequest{
		SandboxID: r.GetSandboxId(), RequestID: r.GetRequestId(), RestorePolicy: fromPolicy(r.GetRestorePolicy()), HostID: r.GetHostId(),
	})
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &sandboxv1.ResumeSandboxResponse{Sandbox: toSandbox(sb)}, nil
}

func (s *sandboxes) PingSandbox(ctx context.Context, r *sandboxv1.PingSandboxRequest) (*sandboxv1.PingSandboxResponse, error) {
	sb, err := s.Service.Ping(ctx, s.Tenant(ctx), r.GetSandboxId())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &sandboxv1.PingSandboxResponse{Sandbox: toSandbox(sb)}, nil
}

func (s *sandboxes) ForkSandbox(ctx context.Context, r *sandboxv1.ForkSandboxRequest) (*sandboxv1.ForkSandboxResponse, error) {
	rows, stopped, err := s.Service.Fork(ctx, s.Tenant(ctx), sandbox.ForkRequest{
		SandboxID: r.GetSandboxId(), RequestID: r.GetRequestId(), Count: r.GetCount(), Metadata: r.GetMetadata(),
	})
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &sandboxv1.ForkSandboxResponse{Sandboxes: toSandboxes(rows), SourceStoppedUsec: stopped}, nil
}

func (s *sandboxes) CreateSnapshot(ctx context.Context, r *sandboxv1.CreateSnapshotRequest) (*sandboxv1.CreateSnapshotResponse, error) {
	snap, err := s.Service.CreateSnapshot(ctx, s.Tenant(ctx), sandbox.SnapshotRequest{
		SandboxID: r.GetSandboxId(), RequestID: r.GetRequestId(), Name: r.GetName(), Metadata: r.GetMetadata(),
	})
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &sandboxv1.CreateSnapshotResponse{Snapshot: toSnapshot(snap)}, nil
}

func (s *sandboxes) GetRestoreReceipt(ctx context.Context, r *sandboxv1.GetRestoreReceiptRequest) (*sandboxv1.GetRestoreReceiptResponse, error) {
	b, err := s.Service.Receipt(ctx, s.Tenant(ctx), r.GetSandboxId())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	receipt := &sandboxv1.RestoreReceipt{}
	if err := proto.Unmarshal(b, receipt); err != nil {
		return nil, s.fail(ctx, err)
	}
	return &sandboxv1.GetRestoreReceiptResponse{Receipt: receipt}, nil
}

func (s *sandboxes) WatchSandboxes(r *sandboxv1.WatchSandboxesRequest, stream grpc.ServerStreamingServer[sandboxv1.WatchSandboxesResponse]) error {
	ctx := stream.Context()
	err := s.Service.Watch(ctx, s.Tenant(ctx), r.GetSandboxId(), r.GetResumeToken(), func(sb sandbox.Sandbox, token string) error {
		return stream.Send(&sandboxv1.WatchSandboxesResponse{Sandbox: toSandbox(sb), ResumeToken: token})
	})
	return s.fail(ctx, err)
}

type locator struct {
	sandboxv1.UnimplementedLocatorServiceServer
	Config
}

func (l *locator) LocateSandbox(ctx context.Context, r *sandboxv1.LocateSandboxRequest) (*sandboxv1.LocateSandboxResponse, error) {
	tenant := r.GetTenantId()
	if tenant == "" {
		tenant = l.Tenant(ctx)
	}
	at, err := l.Service.Locate(ctx, tenant, r.GetSandboxId(), r.GetWake())
	if err != nil {
		return nil, l.fail(ctx, err)
	}
	return &sandboxv1.LocateSandboxResponse{HostId: at.HostID, Address: at.Address, Version: at.Version}, nil
}

func (l *locator) Authenticate(ctx context.Context, r *sandboxv1.AuthenticateRequest) (*sandboxv1.AuthenticateResponse, error) {
	k, err := l.Keys.Authenticate(ctx, r.GetApiKey())
	if err != nil {
		return nil, l.fail(ctx, err)
	}
	return &sandboxv1.AuthenticateResponse{TenantId: k.Tenant, KeyId: k.ID, Scopes: k.Scopes}, nil
}

type keys struct {
	sandboxv1.UnimplementedKeyServiceServer
	Config
}

func (k *keys) CreateKey(ctx context.Context, r *sandboxv1.CreateKeyRequest) (*sandboxv1.CreateKeyResponse, error) {
	tenant := k.Tenant(ctx)
	if r.GetTenantId() != "" && r.GetTenantId() != tenant {
		if !k.Admin(ctx) {
			return nil, k.fail(ctx, &sandbox.Error{
				Kind: sandbox.Denied, Reason: "ADMIN_ONLY", Message: "only a key with the admin scope may make keys of another tenant",
				Meta: map[string]string{"tenant_id": r.GetTenantId()},
			})
		}
		tenant = r.GetTenantId()
	}
	if slices.Contains(r.GetScopes(), sandbox.ScopeAdmin) && !k.Admin(ctx) {
		return nil, k.fail(ctx, &sandbox.Error{Kind: sandbox.Denied, Reason: "ADMIN_ONLY", Message: "only a key with the admin scope may make one"})
	}
	key, secret, err := k.Keys.Create(ctx, tenant, r.GetName(), r.GetScopes())
	if err != nil {
		return nil, k.fail(ctx, err)
	}
	return &sandboxv1.CreateKeyResponse{Key: toKey(key), Secret: secret}, nil
}

func (k *keys) ListKeys(ctx context.Context, r *sandboxv1.ListKeysRequest) (*sandboxv1.ListKeysResponse, error) {
	list, next, err := k.Keys.List(ctx, k.Tenant(ctx), r.GetPageSize(), r.GetPageToken())
	if err != nil {
		return nil, k.fail(ctx, err)
	}
	resp := &sandboxv1.ListKeysResponse{Keys: make([]*sandboxv1.Key, len(list)), NextPageToken: next}
	for i, key := range list {
		resp.Keys[i] = toKey(key)
	}
	return resp, nil
}

func (k *keys) RevokeKey(ctx context.Context, r *sandboxv1.RevokeKeyRequest) (*sandboxv1.RevokeKeyResponse, error) {
	key, err := k.Keys.Revoke(ctx, k.Tenant(ctx), r.GetKeyId())
	if err != nil {
		return nil, k.fail(ctx, err)
	}
	return &sandboxv1.RevokeKeyResponse{Key: toKey(key)}, nil
}
