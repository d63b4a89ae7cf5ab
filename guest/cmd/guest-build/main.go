// Guest-build makes kernel, initramfs and images for Covey's guests.
//
//	guest-build -out DIR [-cache DIR] [-only tiny,base]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/coveyhq/covey/guest/build"
)

func main() {
	out := flag.String("out", "", "directory for the artifacts; required")
	cache := flag.String("cache", "/var/cache/covey/guest", "directory for what is kept between builds")
	only := flag.String("only", "", "images to make, separated by commas; default all")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, *out, *cache, *only); err != nil {
		fmt.Fprintln(os.Stderr, "guest-build:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, cache, only string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	if cache, err = filepath.Abs(cache); err != nil {
		return err
	}
	b := &build.Builder{Cache: cache, Out: out, Progress: os.Stdout}
	if only != "" {
		b.Images = strings.Split(only, ",")
	}
	_, err = b.Build(ctx)
	return err
}
