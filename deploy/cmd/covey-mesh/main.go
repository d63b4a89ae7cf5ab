// Covey-mesh prepares a machine for Covey and runs a mesh on it.
//
//	covey-mesh up|down|status [-dir DIR]   the local mesh
//	covey-mesh demo                        the main job, from nothing to nothing
//	covey-mesh test [-run PATTERN]         every test
//	covey-mesh generate | check            code from proto; drift and import rules
//	covey-mesh lint                        gofmt, go vet and staticcheck
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/coveyhq/covey/deploy/mesh"
)

var commands = map[string]func(context.Context, []string) error{
	"up": up, "down": down, "status": status, "demo": runDemo, "test": test, "generate": generate, "check": check, "lint": lint,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: covey-mesh up|down|status|demo|test|generate|check|lint [flags]")
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := commands[os.Args[1]](ctx, os.Args[2:])
	cancel()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ncovey-mesh %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	return mesh.FindRoot(dir)
}

func prepare(ctx context.Context, forTests bool) (*mesh.Toolchain, *mesh.Progress, error) {
	root, err := checkout()
	if err != nil {
		return nil, nil, err
	}
	p := mesh.NewProgress(os.Stdout)
	p.Title("Preparing (the first time takes several minutes; everything is cached in %s)", mesh.CacheDir())
	t, err := mesh.Prepare(ctx, root, p, forTests)
	return t, p, err
}

func up(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	o := mesh.Options{}
	flags.StringVar(&o.Dir, "dir", mesh.DefaultDir, "the mesh's directory")
	flags.IntVar(&o.Hosts, "hosts", 2, "host agents, 1 to 8")
	flags.StringVar(&o.Listen, "listen", "127.0.0.1:7070", "the gateway's address")
	if err := flags.Parse(args); err != nil {
		return err
	}
	t, p, err := prepare(ctx, false)
	if err != nil {
		return err
	}
	o.Progress = p
	p.Title("Starting the mesh in %s", o.Dir)
	m, err := mesh.Up(ctx, t, o)
	if err != nil {
		return err
	}
	return describe(m)
}

func describe(m *mesh.Mesh) error {
	key, err := m.APIKey()
	if err != nil {
		return err
	}
	fmt.Printf(`
Covey is up.

  REST, docs   %s   (%s/docs)
  gRPC         %s
  API key      %s
  logs         %s/logs

Try:
  export COVEY_URL=%s COVEY_API_KEY=%s
  bin/covey run -- python3 -c 'import platform; print(platform.uname())'
  %s
`, m.URL, m.URL, m.Addr, key, m.Dir, m.URL, key, downCommand(m.Dir))
	return nil
}

// downCommand takes the mesh in a directory down.
func downCommand(dir string) string {
	if dir == mesh.DefaultDir {
		return "make down"
	}
	return "bin/covey-mesh down -dir " + dir
}

func dirFlag(name string, args []string) (string, error) {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	dir := flags.String("dir", mesh.DefaultDir, "the mesh's directory")
	err := flags.Parse(args)
	return *dir, err
}

func down(ctx context.Context, args []string) error {
	dir, err := dirFlag("down", args)
	if err != nil {
		return err
	}
	m, err := mesh.Attach(dir)
	if errors.Is(err, mesh.ErrNoMesh) {
		fmt.Println("Nothing is up in " + dir + ".")
		return nil
	}
	if err != nil {
		return err
	}
	p := mesh.NewProgress(os.Stdout)
	return p.Run("stopping the mesh", func(func(string)) (string, error) {
		return "nothing left in " + dir, m.Down(ctx)
	})
}

func status(ctx context.Context, args []string) error {
	dir, err := dirFlag("status", args)
	if err != nil {
		return err
	}
	m, err := mesh.Attach(dir)
	if err != nil {
		return err
	}
	for _, p := range m.Processes {
		state := "running"
		if !p.Alive() {
			state = "ENDED, see " + p.Log
		}
		fmt.Printf("  %-20s pid %-8d %s\n", p.Name, p.PID, state)
	}
	if err := m.Ready(ctx); err != nil {
		return err
	}
	return describe(m)
}
