// Guestd is Covey's agent inside the VM. The one binary is, by how it is started, the initramfs' /init, the server that
// answers the host ("guestd serve"), and the command covey-lease that programs in the guest use.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/coveyhq/covey/guest/internal/boot"
	"github.com/coveyhq/covey/guest/internal/lease"
	"github.com/coveyhq/covey/guest/internal/server"
)

// address is the same in every guest; see ARCHITECTURE.md.
const address = "172.16.0.2:7777"

func main() {
	switch {
	case os.Getpid() == 1:
		boot.Main()
	case filepath.Base(os.Args[0]) == lease.Command:
		os.Exit(takeLease(os.Args[1:]))
	case len(os.Args) == 2 && os.Args[1] == "serve":
		if err := server.Main(address); err != nil {
			fmt.Fprintln(os.Stderr, "guestd:", err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, "guestd runs inside a Covey sandbox, as its init")
		os.Exit(2)
	}
}

func takeLease(args []string) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	code, err := lease.Run(lease.Socket, args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", lease.Command, err)
	}
	return code
}
