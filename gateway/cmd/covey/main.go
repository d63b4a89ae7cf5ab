// Command covey runs code in microVMs from a terminal: see `covey help`.
package main

import (
	"os"

	"github.com/coveyhq/covey/gateway/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
