// Command hostagentd runs sandboxes on one machine.
//
//	hostagentd --config hostagentd.yaml          serve until a signal comes
//	hostagentd doctor [--config FILE]            say what works on this machine and what does not, and why
//	hostagentd reap --config FILE                end and remove all that an agent of this configuration has left; no agent may be running
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "hostagentd:", err)
		stop()
		os.Exit(1)
	}
}

const usage = "usage: hostagentd [doctor|reap] --config FILE"

// run does what the arguments say.
func run(ctx context.Context, args []string, out io.Writer) error {
	command := "serve"
	if len(args) > 0 && (args[0] == "doctor" || args[0] == "reap") {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("hostagentd", flag.ContinueOnError)
	path := flags.String("config", "", "configuration file, YAML")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if flags.NArg() > 0 || *path == "" && command != "doctor" {
		return errors.New(usage)
	}
	var conf Config
	if *path != "" {
		var err error
		if conf, err = loadConfig(*path); err != nil {
			return err
		}
	}
	switch command {
	case "doctor":
		return doctor(ctx, conf, out)
	case "reap":
		return reap(ctx, conf, out)
	}
	m, err := newMain(ctx, conf)
	if err != nil {
		return err
	}
	return m.run(ctx)
}
