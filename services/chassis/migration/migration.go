// Package migration brings the schemas of Covey's databases up to date.
//
// Each service has a schema of its own in the database, and in it the table of what has been migrated. A migration is a file NAME.sql of
// goose, in order of the numbers that their names begin with; files are only ever added.
//
// Chosen: replicas that start at once wait for each other, by an advisory lock of the database, and each then finds the work done. Rejected: a
// job of its own that has to run before the replicas (one more thing to deploy in order), and goose's own lock (a table).
package migration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// unlockTime bounds the giving back of a lock; the end of the connection gives it back as well.
const unlockTime = 5 * time.Second

// Up brings a schema up to date, while it holds the lock. Files has the migrations at its top. The dsn is a libpq connection string or URL.
func Up(ctx context.Context, dsn, schema string, lock int64, files fs.FS) (err error) {
	conf, err := pgx.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("database dsn: %w", err)
	}
	db := stdlib.OpenDB(*conf)
	defer func() { err = errors.Join(err, db.Close()) }()
	return Locked(ctx, db, lock, func() error {
		// The table of goose is in the schema too, so the schema comes first.
		if _, err := db.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{schema}.Sanitize()); err != nil {
			return err
		}
		p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(schema+".goose_db_version"))
		if err != nil {
			return err
		}
		_, err = p.Up(ctx)
		return err
	})
}

// Locked holds an advisory lock of the whole database while fn runs.
func Locked(ctx context.Context, db *sql.DB, lock int64, fn func() error) (err error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if _, err := c.ExecContext(ctx, "SELECT pg_advisory_lock($1)", lock); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTime)
		defer cancel()
		_, e := c.ExecContext(ctx, "SELECT pg_advisory_unlock($1)", lock)
		err = errors.Join(err, e)
	}()
	return fn()
}
