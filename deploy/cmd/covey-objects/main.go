// Covey-objects is an object store for tests: it speaks S3's protocol in a process of its own, so that it can die apart from the
// registry, and keeps its objects in one file, so that what it has answered for is there when it is started again.
//
//	covey-objects -listen 127.0.0.1:9000 -file objects.db -bucket covey
//
// Uploads in parts that are not completed are in memory alone and end with the process, as S3 lets a bucket's owner decide.
// Signatures are not checked: nothing but a test's own network may reach it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3bolt"
	"go.etcd.io/bbolt"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "covey-objects:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("covey-objects", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:9000", "host:port")
	file := flags.String("file", "", "the file that holds the objects (required)")
	bucket := flags.String("bucket", "covey", "a bucket that is made if need be")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *file == "" || flags.NArg() > 0 {
		return errors.New("usage: covey-objects -file FILE [-listen HOST:PORT] [-bucket NAME]")
	}
	// A process that was killed holds the file's lock until it has ended.
	db, err := bbolt.Open(*file, 0o600, &bbolt.Options{Timeout: 10 * time.Second})
	if err != nil {
		return fmt.Errorf("%s: %w", *file, err)
	}
	defer db.Close()
	objects := s3bolt.New(db)
	switch there, err := objects.BucketExists(*bucket); {
	case err != nil:
		return err
	case !there:
		if err := objects.CreateBucket(*bucket); err != nil {
			return fmt.Errorf("bucket %s: %w", *bucket, err)
		}
	}
	lis, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: gofakes3.New(objects).Server(), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		done <- server.Close()
	}()
	fmt.Fprintln(os.Stderr, "serving bucket", *bucket, "on", lis.Addr())
	if err := server.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done
}
