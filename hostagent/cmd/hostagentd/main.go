// Command hostagentd runs sandboxes on one machine.
//
//	hostagentd --config hostagentd.yaml          serve until a signal comes
//	hostagentd doctor [--config FILE]            say what works on this machine and what does not, and why
//	hostagentd reap --config FILE                end and remove all that an agent of this configuration has left; no agent may be running
package main

import (
	"context"

	"github.com/coveyhq/covey/services/chassis"
)

var program = chassis.Program[Config]{
	Name: "hostagentd", Load: loadConfig, Serve: serve,
	Commands: map[string]chassis.Command[Config]{"doctor": {Run: doctor, Bare: true}, "reap": {Run: reap}},
}

func main() { program.Main() }

func serve(ctx context.Context, c Config) error {
	m, err := newMain(ctx, c)
	if err != nil {
		return err
	}
	return m.run(ctx)
}
