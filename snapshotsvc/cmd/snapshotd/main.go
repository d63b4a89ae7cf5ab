// Command snapshotd is the snapshot registry: which snapshots there are, in PostgreSQL, and their bytes, in an object store.
//
//	snapshotd --config snapshotd.yaml           serve until a signal comes
//	snapshotd migrate --config snapshotd.yaml   bring the database's schema up to date and end
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
		fmt.Fprintln(os.Stderr, "snapshotd:", err)
		stop()
		os.Exit(1)
	}
}

// run does what the arguments say.
func run(ctx context.Context, args []string) error {
	migrate := len(args) > 0 && args[0] == "migrate"
	if migrate {
		args = args[1:]
	}
	flags := flag.NewFlagSet("snapshotd", flag.ContinueOnError)
	path := flags.String("config", "", "configuration file, YAML (required)")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *path == "" || flags.NArg() > 0 {
		return errors.New("usage: snapshotd [migrate] --config FILE")
	}
	conf, err := loadConfig(*path)
	if err != nil {
		return err
	}
	if migrate {
		return migrateSchema(ctx, conf)
	}
	m, err := newMain(ctx, conf)
	if err != nil {
		return err
	}
	return m.run(ctx)
}
