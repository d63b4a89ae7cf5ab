// Command snapinspect shows what snapshot headers, builds and snapshot directories say, and verifies them.
//
//	snapinspect [-json] [-verify] [-runs] PATH...
//
// A PATH is a header (memory.hdr, disk.hdr), a build (builds/<build id>), or a snapshot's directory (snapshots/<snapshot id>).
// Headers and the indexes of builds are verified always; with -verify every frame and every recorded SHA-256 is too, which
// reads everything. The exit status is 1 where something is damaged.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// options of one run.
type options struct {
	json, verify, runs bool
}

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("snapinspect", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: snapinspect [-json] [-verify] [-runs] PATH...")
		flags.PrintDefaults()
	}
	flags.BoolVar(&o.json, "json", false, "print one JSON object for each path")
	flags.BoolVar(&o.verify, "verify", false, "verify every frame and every recorded SHA-256")
	flags.BoolVar(&o.runs, "runs", false, "list the runs of headers and the frames of builds")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() == 0 {
		flags.Usage()
		return 2
	}
	status := 0
	for _, path := range flags.Args() {
		r := inspect(path, o)
		if r.damaged() {
			status = 1
		}
		if err := show(stdout, r, o); err != nil {
			fmt.Fprintln(stderr, "snapinspect:", err)
			return 1
		}
	}
	return status
}

func show(w io.Writer, r *report, o options) error {
	if !o.json {
		return r.print(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
