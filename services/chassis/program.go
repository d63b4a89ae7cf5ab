package chassis

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// Program is a daemon's command line, NAME [COMMAND] --config FILE, with its configuration C.
type Program[C any] struct {
	Name string
	// Load reads and validates a configuration file.
	Load func(path string) (C, error)
	// Serve is what is done without a command: it serves until ctx ends, and releases everything.
	Serve    func(ctx context.Context, conf C) error
	Commands map[string]Command[C]
}

// Command is what a daemon's program does instead of serving.
type Command[C any] struct {
	// Run does it, and says on out what a person is to see.
	Run func(ctx context.Context, conf C, out io.Writer) error
	// Bare: the command does without a configuration as well, and then gets the zero one.
	Bare bool
}

// Main runs the program with the process's arguments until it is done or a signal asks it to end. On failure the process ends with 1, and says why
// on standard error.
func (p Program[C]) Main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := p.Run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		os.Exit(1)
	}
}

// Run does what the arguments say.
func (p Program[C]) Run(ctx context.Context, args []string, out io.Writer) error {
	command := Command[C]{Run: func(ctx context.Context, conf C, _ io.Writer) error { return p.Serve(ctx, conf) }}
	if len(args) > 0 {
		if c, ok := p.Commands[args[0]]; ok {
			command, args = c, args[1:]
		}
	}
	flags := flag.NewFlagSet(p.Name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // what is wrong is returned
	path := flags.String("config", "", "configuration file, YAML")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		_, err := fmt.Fprintln(out, p.usage())
		return err
	} else if err != nil {
		return fmt.Errorf("%w; %s", err, p.usage())
	}
	if flags.NArg() > 0 || *path == "" && !command.Bare {
		return errors.New(p.usage())
	}
	var conf C
	if *path != "" {
		var err error
		if conf, err = p.Load(*path); err != nil {
			return err
		}
	}
	return command.Run(ctx, conf, out)
}

func (p Program[C]) usage() string {
	u := "usage: " + p.Name
	if len(p.Commands) > 0 {
		u += " [" + strings.Join(slices.Sorted(maps.Keys(p.Commands)), "|") + "]"
	}
	return u + " --config FILE"
}
