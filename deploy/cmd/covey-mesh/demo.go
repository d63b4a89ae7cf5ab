package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coveyhq/covey/deploy/demo"
	"github.com/coveyhq/covey/deploy/mesh"
)

// demoParent is where the demo's mesh gets a directory of its own: short, because sockets' paths are.
const demoParent = "/var/lib/covey"

// runDemo starts a mesh, does the main job on it, takes it down, and looks whether anything is left.
func runDemo(ctx context.Context, _ []string) (err error) {
	began := time.Now()
	t, p, err := prepare(ctx, false)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(demoParent, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(demoParent, "demo-")
	if err != nil {
		return err
	}
	before := mesh.LookAround(dir)
	p.Title("Starting a mesh in %s", dir)
	m, err := mesh.Up(ctx, t, mesh.Options{Dir: dir, Listen: "127.0.0.1:0", Progress: p})
	if err == nil {
		err = demo.Run(ctx, m, os.Stdout)
	}
	if err != nil {
		err = keepLogs(err, dir)
	}
	err = errors.Join(err, takeDown(context.WithoutCancel(ctx), p, m, dir, before))
	if err == nil {
		fmt.Printf("\nAll of that took %.0f s.\n", time.Since(began).Seconds())
	}
	return err
}

// takeDown ends the mesh and says what is left of it, which is an error.
func takeDown(ctx context.Context, p *mesh.Progress, m *mesh.Mesh, dir string, before mesh.Traces) error {
	p.Title("Taking it down")
	return p.Run("mesh", func(func(string)) (string, error) {
		if m == nil {
			return "never started", os.RemoveAll(dir)
		}
		if err := m.Down(ctx); err != nil {
			return "", err
		}
		delete(before, "directory") // It was there, and empty.
		if left := mesh.LookAround(dir).Since(before); len(left) > 0 {
			return "", fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
		return "no process, namespace, link, mount, cgroup or file is left", nil
	})
}

// keepLogs copies the logs out of a directory that is about to be removed, and says in the error where they are.
func keepLogs(cause error, dir string) error {
	kept, err := os.MkdirTemp("", "covey-demo-logs-")
	if err == nil {
		err = os.CopyFS(kept, os.DirFS(filepath.Join(dir, "logs")))
	}
	if err != nil {
		return fmt.Errorf("%w\n(its logs could not be kept: %v)", cause, err)
	}
	return fmt.Errorf("%w\nwhat to do: read the logs of this run, which are kept in %s", cause, kept)
}
