package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// cleanupTime bounds what is done after a command was interrupted.
const cleanupTime = 2 * time.Minute

// execFlags are the flags that describe a process.
type execFlags struct {
	start    guestv1.ProcessStart
	env      []string
	terminal bool
	noStdin  bool
}

func (f *execFlags) add(cmd *cobra.Command, withEnv bool) {
	flags := cmd.Flags()
	flags.SetInterspersed(false) // What follows the sandbox, or the first argument of run, is the command's.
	flags.StringVarP(&f.start.User, "user", "u", "", "user to run as (default user, or root where there is none)")
	flags.StringVarP(&f.start.Cwd, "workdir", "w", "", "working directory (default the user's home)")
	flags.BoolVarP(&f.terminal, "tty", "T", false, "run on a terminal")
	flags.BoolVarP(&f.noStdin, "no-stdin", "n", false, "give the command no input")
	if withEnv {
		flags.StringArrayVarP(&f.env, "env", "e", nil, "environment KEY=VALUE (repeatable)")
		flags.Uint32Var(&f.start.TimeoutSec, "timeout", 0, "kill it after so many seconds (0: never)")
	}
}

// command is the process to start for the arguments, which may begin with "--".
func (f *execFlags) command(cmd *cobra.Command, argv []string) (*guestv1.ProcessStart, error) {
	switch {
	case len(argv) > 0 && argv[0] == "--":
		argv = argv[1:]
	case len(argv) > 0 && strings.HasPrefix(argv[0], "-"):
		return nil, usageError{fmt.Errorf("flags come before SANDBOX, got %s after it\nusage: %s", argv[0], cmd.UseLine())}
	}
	if len(argv) == 0 {
		return nil, usageError{fmt.Errorf("CMD is missing\nusage: %s", cmd.UseLine())}
	}
	var err error
	if f.start.Env, err = labels("env", f.env); err != nil {
		return nil, err
	}
	f.start.Cmd, f.start.Args = argv[0], argv[1:]
	return &f.start, nil
}

func (a *app) runCmd() *cobra.Command {
	var create createFlags
	var f execFlags
	var keep bool
	cmd := &cobra.Command{
		Use: "run [flags] -- CMD [ARG...]", Short: "Run a command in a sandbox of its own, which is deleted afterwards",
		Long: "Run makes a sandbox, runs a command in it with its input and output here, deletes the sandbox, and exits with the command's exit code.\n" +
			"Ctrl-C interrupts the command; the sandbox is deleted whatever happens.",
		Example: "  covey run -- python3 -c 'print(6*7)'\n  covey run -t golden --memory 1024 -- make test\n  echo hello | covey run -- tr a-z A-Z",
		RunE: func(cmd *cobra.Command, argv []string) error {
			start, err := f.command(cmd, argv)
			if err != nil {
				return err
			}
			req, err := create.request()
			if err != nil {
				return err
			}
			return a.run(cmd.Context(), req, start, &f, keep)
		},
	}
	create.add(cmd)
	f.add(cmd, false)
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the sandbox and print its id on standard error")
	return cmd
}

// run makes a sandbox, runs a process in it and deletes it.
func (a *app) run(ctx context.Context, req *sandboxv1.CreateSandboxRequest, start *guestv1.ProcessStart, f *execFlags, keep bool) (err error) {
	// From here on Ctrl-C must not end this process: it would leave the sandbox behind.
	interrupts := make(chan os.Signal, 4)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	sb, err := a.makeForRun(ctx, req)
	if err != nil {
		return err
	}
	id := sb.GetId()
	if keep {
		fmt.Fprintln(a.err, id)
	} else {
		defer func() { err = errors.Join(err, a.remove(ctx, id)) }()
	}
	select {
	case <-interrupts:
		return exitError(130)
	default:
	}
	return a.attend(ctx, id, start, f, interrupts)
}

// makeForRun makes a sandbox and waits for it even if interrupted: who does not know its id cannot delete it. A request that was lost on
// its way is made again under the same request id.
func (a *app) makeForRun(ctx context.Context, req *sandboxv1.CreateSandboxRequest) (*sandboxv1.Sandbox, error) {
	req.RequestId = ulid.Make().String()
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Minute)
	defer cancel()
	var res *sandboxv1.CreateSandboxResponse
	err := a.while("Starting a sandbox", func() (err error) {
		for range 3 {
			if res, err = a.c.sandboxes.CreateSandbox(detached, req); status.Code(err) != codes.Unavailable || ctx.Err() != nil {
				return err
			}
		}
		return err
	})
	return res.GetSandbox(), err
}

// remove deletes a sandbox after its run.
func (a *app) remove(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if _, err := a.c.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: id}); err != nil {
		return fmt.Errorf("%s was not deleted: %s\nTry `covey rm %s`", id, a.explain(err), id)
	}
	return nil
}

func (a *app) execCmd() *cobra.Command {
	var f execFlags
	var background bool
	cmd := &cobra.Command{
		Use: "exec [flags] SANDBOX -- CMD [ARG...]", Short: "Run a command in a sandbox",
		Long:    "Exec runs a command with its input and output here, and exits with its exit code. With -o json it waits for the end and prints the API's answer.",
		Example: "  covey exec sb_... -- ls -l /\n  covey exec -u root sb_... -- apt-get install -y jq\n  covey exec -d --tag server sb_... -- python3 -m http.server",
		Args:    some("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			start, err := f.command(cmd, argv[1:])
			if err != nil {
				return err
			}
			switch {
			case background:
				start.Detached = true
				return a.background(cmd.Context(), argv[0], start)
			case a.output == "json":
				return a.execJSON(cmd.Context(), argv[0], start)
			}
			interrupts := make(chan os.Signal, 4)
			signal.Notify(interrupts, os.Interrupt)
			defer signal.Stop(interrupts)
			return a.attend(cmd.Context(), argv[0], start, &f, interrupts)
		},
	}
	f.add(cmd, true)
	cmd.Flags().BoolVarP(&background, "detach", "d", false, "leave it running and print its process id")
	cmd.Flags().BoolVar(&f.start.KeepAlive, "keep-alive", false, "with -d: the sandbox is not paused for inactivity while it runs")
	cmd.Flags().StringVar(&f.start.Tag, "tag", "", "a name for people, shown by ps")
	return cmd
}

// background starts a process and leaves it.
func (a *app) background(ctx context.Context, id string, start *guestv1.ProcessStart) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := a.c.processes.ExecStream(ctx)
	if err != nil {
		return err
	}
	if err := send(st, &guestv1.ExecStreamRequest{SandboxId: id, Frame: &guestv1.ExecStreamRequest_Start{Start: start}}); err != nil {
		return err
	}
	m, err := st.Recv()
	if err != nil {
		return err
	}
	if e := m.GetExited(); e != nil {
		return fmt.Errorf("it could not be started: %s", e.GetError())
	}
	if err := send(st, &guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Detach{Detach: &guestv1.Detach{}}}); err != nil {
		return err
	}
	return a.show(m.GetStarted(), func() { fmt.Fprintln(a.out, m.GetStarted().GetProcessId()) })
}

func (a *app) execJSON(ctx context.Context, id string, start *guestv1.ProcessStart) error {
	res, err := a.c.processes.Exec(ctx, &guestv1.ExecRequest{
		SandboxId: id, Cmd: start.GetCmd(), Args: start.GetArgs(), Cwd: start.GetCwd(), Env: start.GetEnv(), User: start.GetUser(), TimeoutSec: start.GetTimeoutSec(),
	})
	if err != nil {
		return err
	}
	if err := a.show(res, nil); err != nil {
		return err
	}
	if res.GetExitCode() != 0 {
		return exitError(res.GetExitCode())
	}
	return nil
}

// loginShell is bash where the image has it, else sh.
const loginShell = `if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi`

func (a *app) shellCmd() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use: "shell SANDBOX", Short: "Open a shell on a terminal in a sandbox", Args: args("SANDBOX"),
		Long: "Opens a shell on a terminal in a sandbox. Where input here comes from no terminal, the shell has none either, and ends with its input.",
		RunE: func(cmd *cobra.Command, argv []string) error {
			f.terminal = a.typed()
			f.start.Cmd, f.start.Args, f.start.Tag = "/bin/sh", []string{"-c", loginShell}, "shell"
			return a.attend(cmd.Context(), argv[0], &f.start, &f, nil)
		},
	}
	cmd.Flags().StringVarP(&f.start.User, "user", "u", "", "user to be (default user, or root where there is none)")
	cmd.Flags().StringVarP(&f.start.Cwd, "workdir", "w", "", "working directory (default the user's home)")
	return cmd
}

func (a *app) attachCmd() *cobra.Command {
	return &cobra.Command{
		Use: "attach SANDBOX PROCESS", Short: "Follow the output of a process that was started with exec -d", Args: args("SANDBOX", "PROCESS"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			first := &guestv1.ExecStreamRequest{SandboxId: argv[0], Frame: &guestv1.ExecStreamRequest_Attach{Attach: &guestv1.ProcessAttach{ProcessId: argv[1]}}}
			s, err := a.open(cmd.Context(), first)
			if err != nil {
				return err
			}
			defer s.cancel()
			return s.copyOut()
		},
	}
}

func (a *app) processesCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ps SANDBOX", Short: "List the processes that were started in a sandbox", Args: args("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			res, err := a.c.processes.ListProcesses(cmd.Context(), &guestv1.ListProcessesRequest{SandboxId: argv[0]})
			if err != nil {
				return err
			}
			return a.show(res, func() {
				var rows [][]string
				for _, p := range res.GetProcesses() {
					state := "running"
					if e := p.GetExited(); e != nil {
						state = fmt.Sprintf("exited %d", e.GetExitCode())
					}
					rows = append(rows, []string{p.GetProcessId(), fmt.Sprint(p.GetPid()), state, p.GetUser(), dash(p.GetTag()), clip(strings.Join(p.GetCommand(), " "), 60)})
				}
				a.table("PROCESS PID STATE USER TAG COMMAND", rows)
			})
		},
	}
}

func (a *app) killCmd() *cobra.Command {
	var sig string
	cmd := &cobra.Command{
		Use: "kill SANDBOX PROCESS", Short: "Send a signal to a process in a sandbox", Args: args("SANDBOX", "PROCESS"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			res, err := a.c.processes.SignalProcess(cmd.Context(), &guestv1.SignalProcessRequest{SandboxId: argv[0], ProcessId: argv[1], Signal: sig})
			if err != nil {
				return err
			}
			return a.show(res, func() {})
		},
	}
	cmd.Flags().StringVarP(&sig, "signal", "s", "SIGKILL", "signal, by name or number")
	return cmd
}

// signalNames are the signals that are passed on, by those that come in here.
var signalNames = map[os.Signal]string{os.Interrupt: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP"}
