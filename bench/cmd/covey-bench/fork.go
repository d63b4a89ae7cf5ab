package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// benchFork makes 8 live clones of a running sandbox, and takes the time until all of them have answered an exec.
func benchFork(ctx context.Context, e *env) (map[string]float64, error) {
	ctx, err := e.start(ctx, 1)
	if err != nil {
		return nil, err
	}
	const copies = 8
	source, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: "base", MemoryMb: 256})
	if err != nil {
		return nil, err
	}
	if _, err := e.exec(ctx, source.GetId(), "head -c 4m /dev/urandom > /dev/shm/mine"); err != nil {
		return nil, err
	}
	var all, stopped series
	for i := range e.runs {
		began := time.Now()
		res, err := e.sandboxes.ForkSandbox(ctx, &sandboxv1.ForkSandboxRequest{SandboxId: source.GetId(), Count: copies})
		if err != nil {
			return nil, fmt.Errorf("fork: %w", err)
		}
		if err := e.answer(ctx, res.GetSandboxes()); err != nil {
			return nil, err
		}
		all, stopped = append(all, ms(time.Since(began))), append(stopped, float64(res.GetSourceStoppedUsec())/1000)
		fmt.Printf("  fork %2d of %d: %.0f ms, source stopped %.1f ms\n", i+1, e.runs, all[len(all)-1], stopped[len(stopped)-1])
		if err := e.deleteAll(ctx, res.GetSandboxes()); err != nil {
			return nil, err
		}
	}
	all.row("8 clones, all answering", "ms")
	stopped.row("source stopped", "ms")
	return map[string]float64{"fork8_ms": all.median(), "fork_stop_p50_ms": stopped.median()}, nil
}

// answer runs a command in each at once.
func (e *env) answer(ctx context.Context, list []*sandboxv1.Sandbox) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, sb := range list {
		g.Go(func() error { _, err := e.exec(ctx, sb.GetId(), "true"); return err })
	}
	return g.Wait()
}

func (e *env) deleteAll(ctx context.Context, list []*sandboxv1.Sandbox) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, sb := range list {
		g.Go(func() error { return e.delete(ctx, sb.GetId()) })
	}
	return g.Wait()
}
