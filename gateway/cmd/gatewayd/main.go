// Command gatewayd is the edge of a mesh: REST, WebSocket and native gRPC on one port.
//
//	gatewayd --config gatewayd.yaml
package main

import (
	"context"

	"github.com/coveyhq/covey/gateway/internal/gateway"
	"github.com/coveyhq/covey/services/chassis"
)

var program = chassis.Program[gateway.Config]{Name: "gatewayd", Load: gateway.LoadConfig, Serve: serve}

func main() { program.Main() }

func serve(ctx context.Context, c gateway.Config) error {
	g, err := gateway.New(c)
	if err != nil {
		return err
	}
	return g.Daemon.Run(ctx)
}
