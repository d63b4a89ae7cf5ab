package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coveyhq/covey/deploy/mesh"
)

// Demo is one run on one mesh.
type Demo struct {
	m   *mesh.Mesh
	key string
	out io.Writer
	// dir is for files that go in and out of sandboxes.
	dir string
}

// step is one thing that is shown.
type step struct {
	title string
	do    func(context.Context) error
}

// Run shows everything on m, which has at least two hosts, and leaves no sandbox behind.
func Run(ctx context.Context, m *mesh.Mesh, out io.Writer) (err error) {
	key, err := m.APIKey()
	if err != nil {
		return err
	}
	d := &Demo{m: m, key: key, out: out}
	if d.dir, err = os.MkdirTemp("", "covey-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	for i, s := range d.steps() {
		fmt.Fprintf(out, "\n%d. %s\n", i+1, s.title)
		began := time.Now()
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, s.title, err)
		}
		d.say("✓ %.1f s", time.Since(began).Seconds())
	}
	return nil
}

func (d *Demo) steps() []step {
	return []step{
		{"A command in a microVM of its own, which is gone afterwards", d.runOnce},
		{"A sandbox: created, and a Python program in it", d.python},
		{"Output arrives while the command runs", d.stream},
		{"A file goes in and comes back the same", d.files},
		{"A terminal", d.terminal},
		{"Two sandboxes cannot see each other", d.isolation},
		{"The same over plain HTTP", d.rest},
		{"A template made on one host, and a sandbox of it on another", d.template},
		{"Paused on one host, resumed on another: memory and disk come along", d.resumed},
		{"A host is emptied while its sandboxes go on elsewhere", d.drain},
		{"Delete them", d.removeAll},
	}
}

// say prints a line of the demo's own.
func (d *Demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "   "+format+"\n", args...)
}

// show runs the command line, prints the call and its output as it comes, and returns that output.
func (d *Demo) show(ctx context.Context, args ...string) (string, error) {
	d.say("$ covey %s", strings.Join(quoted(args), " "))
	var keep bytes.Buffer
	err := d.covey(ctx, io.MultiWriter(&keep, &indented{w: d.out, start: true}), args...)
	return keep.String(), err
}

// quiet runs the command line and returns its output.
func (d *Demo) quiet(ctx context.Context, args ...string) (string, error) {
	var keep bytes.Buffer
	err := d.covey(ctx, &keep, args...)
	return strings.TrimSpace(keep.String()), err
}

func (d *Demo) covey(ctx context.Context, out io.Writer, args ...string) error {
	cmd := d.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("covey %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

func (d *Demo) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.m.Bin, "covey"), args...)
	cmd.Env = append(os.Environ(), "COVEY_URL="+d.m.URL, "COVEY_API_KEY="+d.key)
	return cmd
}

// sandbox is what the demo reads of a sandbox's JSON.
type sandbox struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	HostID   string `json:"host_id"`
	Snapshot string `json:"snapshot_id"`
}

// create makes a sandbox, and tells how long that took.
func (d *Demo) create(ctx context.Context, args ...string) (sandbox, error) {
	var sb sandbox
	args = append([]string{"create"}, args...)
	d.say("$ covey %s", strings.Join(quoted(args), " "))
	began := time.Now()
	out, err := d.quiet(ctx, append(args, "-o", "json")...)
	if err != nil {
		return sb, err
	}
	if err := json.Unmarshal([]byte(out), &sb); err != nil {
		return sb, fmt.Errorf("covey create -o json printed %q: %w", out, err)
	}
	d.say("%s is %s on %s after %d ms", sb.ID, sb.State, sb.HostID, time.Since(began).Milliseconds())
	return sb, nil
}

// indented writes lines under the demo's own.
type indented struct {
	w     io.Writer
	start bool // at the start of a line
}

func (i *indented) Write(b []byte) (int, error) {
	for _, line := range bytes.SplitAfter(b, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		if i.start {
			fmt.Fprint(i.w, "     ")
		}
		if _, err := i.w.Write(line); err != nil {
			return 0, err
		}
		i.start = line[len(line)-1] == '\n'
	}
	return len(b), nil
}

// quoted shows arguments as they would be typed.
func quoted(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		if a == "" || strings.ContainsAny(a, " \n\"'$;|&()<>*") {
			a = "'" + strings.ReplaceAll(strings.ReplaceAll(a, "\n", "; "), "'", `'\''`) + "'"
		}
		out[i] = a
	}
	return out
}
