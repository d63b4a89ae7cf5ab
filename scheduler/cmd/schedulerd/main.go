// Command schedulerd decides which host a sandbox runs on. It keeps nothing on disk: hosts tell it what they have.
//
//	schedulerd --config schedulerd.yaml   serve until a signal comes
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "schedulerd:", err)
		stop()
		os.Exit(1)
	}
}

// run does what the arguments say.
func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("schedulerd", flag.ContinueOnError)
	path := flags.String("config", "", "configuration file, YAML (required)")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *path == "" || flags.NArg() > 0 {
		return errors.New("usage: schedulerd --config FILE")
	}
	conf, err := loadConfig(*path)
	if err != nil {
		return err
	}
	m, err := newMain(conf)
	if err != nil {
		return err
	}
	return m.run(ctx)
}
