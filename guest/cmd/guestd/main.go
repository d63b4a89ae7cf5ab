// Guestd is Covey's agent inside the VM: as PID 1 it is the initramfs' /init, as "guestd serve" it answers the host.
package main

import (
	"fmt"
	"os"

	"github.com/coveyhq/covey/guest/internal/boot"
	"github.com/coveyhq/covey/guest/internal/server"
)

func main() {
	switch {
	case os.Getpid() == 1:
		boot.Main()
	case len(os.Args) == 2 && os.Args[1] == "serve":
		if err := server.Main("172.16.0.2:7777"); err != nil {
			fmt.Fprintln(os.Stderr, "guestd:", err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, "guestd runs inside a Covey sandbox, as its init")
		os.Exit(2)
	}
}
