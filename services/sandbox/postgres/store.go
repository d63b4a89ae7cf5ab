package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/coveyhq/covey/services/chassis/migration"
	"github.com/coveyhq/covey/services/chassis/outage"
	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/postgres/queries"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrationLock is the advisory lock under which one replica at a time migrates, and bootstrapLock the one of LockBootstrap.
const (
	migrationLock = 0x636f766579_01
	bootstrapLock = 0x636f766579_02
)

// How long things are kept.
const (
	keepEvents    = 24 * time.Hour
	keepRequests  = 24 * time.Hour
	keepSandboxes = 30 * 24 * time.Hour
	keepKeys      = 30 * 24 * time.Hour // KeepRevokedKeys
)

// Config says where the database is.
type Config struct {
	// DSN is a libpq connection string or URL.
	DSN string `yaml:"dsn"`
	// MaxConns of the pool; default 16.
	MaxConns int32 `yaml:"max_conns"`
	// KeepRevokedKeys is how long keys that were revoked are listed. What they did stays in the audit log. Default 720h: 30 days.
	KeepRevokedKeys time.Duration `yaml:"keep_revoked_keys"`
}

// Store implements sandbox.Store.
type Store struct {
	pool  *pgxpool.Pool
	q     *queries.Queries
	owner string
	lease int64 // milliseconds
	// keepKeys is how long revoked keys are kept.
	keepKeys time.Duration
	bell     *bell
}

var _ sandbox.Store = (*Store)(nil)

// Migrate brings the schema up to date. Replicas that start at once wait for each other.
func Migrate(ctx context.Context, dsn string) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return migration.Up(ctx, dsn, "sandbox", migrationLock, files)
}

// Open connects to a migrated database. Leases are the owner's and last as long as given. Close must be called.
func Open(ctx context.Context, c Config, owner string, lease time.Duration, log *slog.Logger) (*Store, error) {
	conf, err := pgxpool.ParseConfig(c.DSN)
	if err != nil {
		return nil, fmt.Errorf("database dsn: %w", err)
	}
	conf.MaxConns = c.MaxConns
	if conf.MaxConns == 0 {
		conf.MaxConns = 16
	}
	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	b, err := listen(ctx, conf.ConnConfig, log)
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("database: %w", err)
	}
	keep := c.KeepRevokedKeys
	if keep == 0 {
		keep = keepKeys
	}
	return &Store{pool: pool, q: queries.New(pool), owner: owner, lease: lease.Milliseconds(), keepKeys: keep, bell: b}, nil
}

// Close ends all connections.
func (s *Store) Close() {
	s.bell.close()
	s.pool.Close()
}

// LockBootstrap runs fn while no other replica does.
func (s *Store) LockBootstrap(ctx context.Context, fn func(context.Context) error) error {
	db := stdlib.OpenDBFromPool(s.pool)
	defer db.Close()
	return migration.Locked(ctx, db, bootstrapLock, func() error { return fn(ctx) })
}

// known makes the database's errors those that callers understand; what is left is a fault of ours.
func known(err error) error {
	if outage.OfDatabase(err) {
		return &sandbox.Error{Kind: sandbox.Unavailable, Reason: "DATABASE_UNAVAILABLE", Message: "the database is out of reach; try again"}
	}
	return err
}

// missing is known for a query of one row, whose absence is what.
func missing(err error, reason, format string, args ...any) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return &sandbox.Error{Kind: sandbox.NotFound, Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	return known(err)
}

// Get implements sandbox.Store.
func (s *Store) Get(ctx context.Context, tenant, id string) (sandbox.Sandbox, error) {
	row, err := s.q.GetSandbox(ctx, queries.GetSandboxParams{ID: id, TenantID: tenant})
	if err != nil {
		return sandbox.Sandbox{}, missing(err, "SANDBOX_NOT_FOUND", "no sandbox %s", id)
	}
	return decode(row)
}

// Find implements sandbox.Store.
func (s *Store) Find(ctx context.Context, ids []string) (map[string]sandbox.Sandbox, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	rows, err := decodeAll(s.q.FindSandboxes(ctx, ids))
	found := make(map[string]sandbox.Sandbox, len(rows))
	for _, r := range rows {
		found[r.ID] = r
	}
	return found, err
}

// List implements sandbox.Store.
func (s *Store) List(ctx context.Context, tenant string, states []sandbox.State, metadata map[string]string, from sandbox.Page, limit int) ([]sandbox.Sandbox, error) {
	p := queries.ListSandboxesParams{TenantID: tenant, States: []string{}, RowLimit: int32(limit), BeforeID: from.BeforeID}
	for _, st := range states {
		p.States = append(p.States, string(st))
	}
	if from.BeforeID != "" {
		p.BeforeTime = &from.BeforeTime
	}
	var err error
	if p.Metadata, err = encodeMap(metadata); err != nil {
		return nil, err
	}
	return decodeAll(s.q.ListSandboxes(ctx, p))
}

// Receipt implements sandbox.Store.
func (s *Store) Receipt(ctx context.Context, tenant, id string) ([]byte, error) {
	b, err := s.q.GetReceipt(ctx, queries.GetReceiptParams{SandboxID: id, TenantID: tenant})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return b, known(err)
}

// Apart implements sandbox.Store.
func (s *Store) Apart(ctx context.Context, tenant, antiAffinity string) ([]sandbox.Sandbox, error) {
	return decodeAll(s.q.ListApart(ctx, queries.ListApartParams{TenantID: tenant, AntiAffinity: antiAffinity}))
}

// OnHost implements sandbox.Store.
func (s *Store) OnHost(ctx context.Context, hostID string) ([]sandbox.Sandbox, error) {
	return decodeAll(s.q.ListOnHost(ctx, hostID))
}

// HostsInUse implements sandbox.Store.
func (s *Store) HostsInUse(ctx context.Context) ([]string, error) {
	ids, err := s.q.ListHostsInUse(ctx)
	return ids, known(err)
}

// OfWork implements sandbox.Store.
func (s *Store) OfWork(ctx context.Context, workID string) ([]sandbox.Sandbox, error) {
	return decodeAll(s.q.ListOfWork(ctx, workID))
}

// Undurable implements sandbox.Store.
func (s *Store) Undurable(ctx context.Context, limit int) ([]sandbox.Sandbox, error) {
	return decodeAll(s.q.ListUndurable(ctx, int32(limit)))
}

// Expired implements sandbox.Store.
func (s *Store) Expired(ctx context.Context, grace time.Duration, limit int) ([]sandbox.Sandbox, error) {
	return decodeAll(s.q.ListExpired(ctx, queries.ListExpiredParams{GraceMs: grace.Milliseconds(), RowLimit: int32(limit)}))
}

// SnapshotUsers implements sandbox.Store.
func (s *Store) SnapshotUsers(ctx context.Context, snapshotID string) (int, error) {
	n, err := s.q.CountSnapshotUsers(ctx, snapshotID)
	return int(n), known(err)
}

// Touch implements sandbox.Store.
func (s *Store) Touch(ctx context.Context, used map[string]time.Time) error {
	var p queries.TouchSandboxesParams
	for id, at := range used {
		p.Ids, p.Times = append(p.Ids, id), append(p.Times, at)
	}
	return known(s.q.TouchSandboxes(ctx, p))
}

// Subscribe implements sandbox.Store.
func (s *Store) Subscribe(tenant, sandboxID string) (<-chan struct{}, func()) {
	return s.bell.subscribe(tenant, sandboxID)
}

// Prune implements sandbox.Store.
func (s *Store) Prune(ctx context.Context) error {
	return known(errors.Join(
		s.q.DeleteOldEvents(ctx, keepEvents.Milliseconds()),
		s.q.DeleteOldRequests(ctx, keepRequests.Milliseconds()),
		s.q.DeleteOldSandboxes(ctx, keepSandboxes.Milliseconds()),
		s.q.DeleteOldKeys(ctx, queries.DeleteOldKeysParams{KeepMs: s.keepKeys.Milliseconds(), Adopted: sandbox.BootstrapKey}),
		s.q.DeleteOldSnapshotClaims(ctx), s.q.DeleteOldUsage(ctx), s.q.DeleteOldAudit(ctx),
	))
}
