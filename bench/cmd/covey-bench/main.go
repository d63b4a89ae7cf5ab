// Covey-bench measures what SPECIFICATION.md promises, on a mesh that it starts and takes down itself.
//
//	go run ./bench/cmd/covey-bench NAME [-runs N]
//
// Progress and tables come first; the last line of each bench is {"bench":NAME,"metrics":{...}}, one number for each
// metric, whose name carries its unit. Machines are noisy: figures are medians of several runs, and goals are ratios
// against a baseline measured in the same run wherever there is one.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// bench measures one thing; it returns its metrics.
type bench struct {
	about string
	run   func(context.Context, *env) (map[string]float64, error)
}

var benches = map[string]bench{
	"api":       {"what the gateway costs beside native gRPC, bytes beside raw TCP, memory of idle streams", benchAPI},
	"boot":      {"cold boot: VM start to guestd answering", benchBoot},
	"restore":   {"spawn from a template to first exec, by memory size, beside QEMU's eager restore", benchRestore},
	"pager":     {"page faults on the real userfaultfd, beside a straight-line handler", benchPager},
	"pause":     {"pause of a 512 MiB guest, and again right after its resume", benchPause},
	"fork":      {"8 live clones of a running sandbox", benchFork},
	"density":   {"50 idle clones of one template", benchDensity},
	"registry":  {"snapshots between hosts: cold against warm, bytes moved, uploads and reads against the local disk", benchRegistry},
	"scheduler": {"placements on one core with 1,000 and 10,000 simulated hosts, and how well they are spread", benchScheduler},
}

func main() {
	runs := flag.Int("runs", 10, "runs of each measurement, at least 3")
	flag.Usage = usage
	if len(os.Args) < 2 {
		usage()
		os.Exit(2)
	}
	name := os.Args[1]
	if err := flag.CommandLine.Parse(os.Args[2:]); err != nil {
		os.Exit(2)
	}
	names := []string{name}
	if name == "all" {
		names = slices.Sorted(maps.Keys(benches))
	} else if _, ok := benches[name]; !ok {
		usage()
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := runAll(ctx, names, max(*runs, 3))
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "covey-bench:", err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: covey-bench NAME|all [-runs N]")
	for _, n := range slices.Sorted(maps.Keys(benches)) {
		fmt.Fprintf(os.Stderr, "  %-10s %s\n", n, benches[n].about)
	}
}

func runAll(ctx context.Context, names []string, runs int) error {
	for _, name := range names {
		fmt.Printf("# %s: %s\n", name, benches[name].about)
		e := &env{runs: runs}
		metrics, err := benches[name].run(ctx, e)
		if closeErr := e.close(context.WithoutCancel(ctx)); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		line, err := json.Marshal(map[string]any{"bench": name, "metrics": metrics})
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	return nil
}
