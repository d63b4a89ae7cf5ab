// Command schedulerd decides which host a sandbox runs on. It keeps nothing on disk: hosts tell it what they have.
//
//	schedulerd --config schedulerd.yaml   serve until a signal comes
package main

import (
	"context"

	"github.com/coveyhq/covey/services/chassis"
)

var program = chassis.Program[Config]{Name: "schedulerd", Load: loadConfig, Serve: serve}

func main() { program.Main() }

func serve(ctx context.Context, c Config) error {
	m, err := newMain(c)
	if err != nil {
		return err
	}
	return m.run(ctx)
}
