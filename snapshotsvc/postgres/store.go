package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/coveyhq/covey/services/chassis/migration"
	"github.com/coveyhq/covey/services/chassis/outage"
	"github.com/coveyhq/covey/snapshotsvc/postgres/queries"
	"github.com/coveyhq/covey/snapshotsvc/registry"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrationLock is the advisory lock under which one replica at a time migrates.
const migrationLock = 0x636f766579_03

// maxRetries bounds how often a transaction is done again that PostgreSQL has ended to let another go on.
const maxRetries = 10

// Config says where the database is.
type Config struct {
	// DSN is a libpq connection string or URL.
	DSN string `yaml:"dsn"`
	// MaxConns of the pool; default 16.
	MaxConns int32 `yaml:"max_conns"`
}

// Index implements registry.Index.
type Index struct {
	pool *pgxpool.Pool
	q    *queries.Queries
}

var _ registry.Index = (*Index)(nil)

// Migrate brings the schema up to date. Replicas that start at once wait for each other.
func Migrate(ctx context.Context, dsn string) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return migration.Up(ctx, dsn, "snapshot", migrationLock, files)
}

// Open connects to a migrated database. Close must be called.
func Open(ctx context.Context, c Config) (*Index, error) {
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
	return &Index{pool: pool, q: queries.New(pool)}, nil
}

// Close ends all connections.
func (x *Index) Close() { x.pool.Close() }

// Ping tells whether the database answers.
func (x *Index) Ping(ctx context.Context) error { return known(x.pool.Ping(ctx)) }

// isolation of all transactions, whatever the database's default is: what is decided under a lock has to see what was committed before the
// lock was had, so each statement must have a look at the database of its own.
var isolation = pgx.TxOptions{IsoLevel: pgx.ReadCommitted}

// tx runs fn in a transaction, again where PostgreSQL ended it for another's sake.
func (x *Index) tx(ctx context.Context, fn func(*queries.Queries) error) error {
	for try := 0; ; try++ {
		err := pgx.BeginTxFunc(ctx, x.pool, isolation, func(tx pgx.Tx) error { return fn(x.q.WithTx(tx)) })
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01") && try < maxRetries {
			continue
		}
		return known(err)
	}
}

// known makes the database's errors those that callers understand; what is left is a fault of ours.
func known(err error) error {
	if outage.OfDatabase(err) {
		return &registry.Error{Kind: registry.Unavailable, Reason: "DATABASE_UNAVAILABLE", Message: "the database is out of reach; try again", Err: err}
	}
	return err
}

// violates tells whether an error is that of a unique index.
func violates(err error, index string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505" && pg.ConstraintName == index
}
