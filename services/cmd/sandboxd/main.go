// Command sandboxd is the control plane of sandboxes: their state in PostgreSQL, the work that moves them through it, and
// the API keys.
//
//	sandboxd --config sandboxd.yaml           serve until a signal comes
//	sandboxd migrate --config sandboxd.yaml   bring the database's schema up to date and end
package main

import (
	"context"
	"io"

	"github.com/coveyhq/covey/services/chassis"
)

var program = chassis.Program[Config]{
	Name: "sandboxd", Load: loadConfig, Serve: serve,
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
