// Command snapshotd is the snapshot registry: which snapshots there are, in PostgreSQL, and their bytes, in an object store.
//
//	snapshotd --config snapshotd.yaml           serve until a signal comes
//	snapshotd migrate --config snapshotd.yaml   bring the database's schema up to date and end
package main

import (
	"context"
	"io"

	"github.com/coveyhq/covey/services/chassis"
)

var program = chassis.Program[Config]{
	Name: "snapshotd", Load: loadConfig, Serve: serve,
	Commands: map[string]chassis.Command[Config]{"migrate": {Run: func(ctx context.Context, c Config, _ io.Writer) error { return migrateSchema(ctx, c) }}},
}

func main() { program.Main() }

func serve(ctx context.Context, c Config) error {
	m, err := newMain(ctx, c)
	if err != nil {
		return err
	}
	return m.run(ctx)
}
