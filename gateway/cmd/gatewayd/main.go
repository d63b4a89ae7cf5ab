// Command gatewayd is the edge of a mesh: REST, WebSocket and native gRPC on one port.
//
//	gatewayd --config gatewayd.yaml
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/coveyhq/covey/gateway/internal/gateway"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gatewayd:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("gatewayd", flag.ContinueOnError)
	path := flags.String("config", "", "configuration file, YAML (required)")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *path == "" || flags.NArg() > 0 {
		return errors.New("usage: gatewayd --config FILE")
	}
	conf, err := gateway.LoadConfig(*path)
	if err != nil {
		return err
	}
	g, err := gateway.New(conf)
	if err != nil {
		return err
	}
	return g.Daemon.Run(ctx)
}
