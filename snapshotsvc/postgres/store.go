package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

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
func Migrate(ctx context.Context, dsn string) (err error) {
	conf, err := pgx.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("database dsn: %w", err)
	}
	db := stdlib.OpenDB(*conf)
	defer func() { err = errors.Join(err, db.Close()) }()
	return locked(ctx, db, func() error {
		// The table of goose is in the schema too, so the schema comes first.
		if _, err := db.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS snapshot"); err != nil {
			return err
		}
		files, err := fs.Sub(migrations, "migrations")
		if err != nil {
			return err
		}
		p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName("snapshot.goose_db_version"))
		if err != nil {
			return err
		}
		_, err = p.Up(ctx)
		return err
	})
}

// locked holds the migration lock while fn runs.
func locked(ctx context.Context, db *sql.DB, fn func() error) (err error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if _, err := c.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(migrationLock)); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, e := c.ExecContext(ctx, "SELECT pg_advisory_unlock($1)", int64(migrationLock))
		err = errors.Join(err, e)
	}()
	return fn()
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
