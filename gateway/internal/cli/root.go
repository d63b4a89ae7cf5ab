package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// app is what all commands share.
type app struct {
	url, key, output string
	in               io.Reader
	out, err         io.Writer
	c                *client
}

// exitError makes the process exit with a code and print nothing more.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a mistake in how the command was called.
type usageError struct{ error }

// Main runs the command line and returns the exit code.
func Main(args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	a := &app{in: in, out: out, err: errOut}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if a.c != nil {
		a.c.conn.Close()
	}
	return a.code(err)
}

func (a *app) code(err error) int {
	var exit exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"), strings.HasPrefix(err.Error(), "unknown flag"):
		fmt.Fprintln(a.err, "covey:", err)
		return 2
	}
	fmt.Fprintln(a.err, "covey:", explain(err))
	return 1
}

// explain makes a status readable: its message, what to do next, and the request id to look for in the logs.
func explain(err error) string {
	s, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	msg := s.Message()
	info := infoOf(s)
	if id := info.GetMetadata()["request_id"]; id != "" && !strings.Contains(msg, id) {
		msg += " (request " + id + ")"
	}
	if next := nextStep(s, info); next != "" {
		msg += "\n" + next
	}
	return msg
}

func infoOf(s *status.Status) *errdetails.ErrorInfo {
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

// nextStep is what to do about an error, where that is known.
func nextStep(s *status.Status, info *errdetails.ErrorInfo) string {
	switch info.GetReason() {
	case "SANDBOX_NOT_FOUND":
		return "`covey ls` lists the sandboxes that there are."
	case "TEMPLATE_NOT_FOUND", "SNAPSHOT_NOT_FOUND":
		return "`covey snapshot ls` lists the templates."
	case "NO_CAPACITY":
		return "`covey place --explain` says why; `covey pause` or `covey rm` makes room."
	case "SANDBOX_NOT_RUNNING", "NOT_RUNNING":
		if strings.Contains(s.Message(), "PAUSED") {
			return "`covey resume` starts it again."
		}
	case "MISSING_SCOPE":
		return "`covey keys create --scope` makes a key that may, with a key of scope admin."
	}
	switch s.Code() {
	case codes.Unavailable:
		if info == nil { // Not an answer of the gateway: there was none.
			return "The gateway cannot be reached. Is it running? `make up` starts a local mesh; --url or COVEY_URL names another."
		}
		return "A part of the mesh is out of reach; try again."
	case codes.Unauthenticated:
		return "Set COVEY_API_KEY or --api-key to a valid key."
	case codes.Unimplemented:
		if info == nil {
			return "Is this the gateway? --url or COVEY_URL names it."
		}
	}
	return ""
}

// sandboxMissing tells that a NOT_FOUND is about the sandbox and not about what is in it.
func sandboxMissing(err error) bool {
	s, _ := status.FromError(err)
	return strings.HasPrefix(infoOf(s).GetReason(), "SANDBOX_")
}

func (a *app) root() *cobra.Command {
	url := os.Getenv("COVEY_URL")
	if url == "" {
		url = keptLogin().URL
	}
	if url == "" {
		url = "http://127.0.0.1:7070"
	}
	root := &cobra.Command{
		Use:           "covey",
		Short:         "Run code in microVMs",
		Long:          "Covey runs untrusted code in microVMs that start in milliseconds, pause to disk, resume on any host and fork into many.",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.connect(cmd) },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.url, "url", url, "the gateway (COVEY_URL)")
	flags.StringVar(&a.key, "api-key", "", "API key (COVEY_API_KEY; default: the local mesh's)")
	flags.StringVarP(&a.output, "output", "o", "table", "output: table or json")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(a.runCmd(), a.createCmd(), a.listCmd(), a.getCmd(), a.removeCmd(), a.execCmd(), a.shellCmd(), a.copyCmd(),
		a.logsCmd(), a.processesCmd(), a.pauseCmd(), a.resumeCmd(), a.forkCmd(), a.pingCmd(), a.receiptCmd(), a.watchCmd(), a.snapshotCmd(),
		a.hostsCmd(), a.placeCmd(), a.keysCmd(), a.attachCmd(), a.killCmd(), a.usageCmd(), a.auditCmd(), a.quotaCmd(), a.traceCmd(), a.portCmd(), a.forwardCmd(), a.metricsCmd(), a.authCmd())
	return root
}

// connect dials lazily: gRPC connects at the first call, so help and usage errors need no gateway.
func (a *app) connect(cmd *cobra.Command) error {
	if a.output != "table" && a.output != "json" {
		return usageError{fmt.Errorf("--output: must be table or json, got %q", a.output)}
	}
	if cmd.Name() == "trace" || cmd.Name() == "login" || cmd.Name() == "logout" || cmd.Name() == "help" || cmd.Name() == "completion" || cmd.Parent() != nil && cmd.Parent().Name() == "completion" {
		return nil
	}
	key, err := findKey(a.url, a.key)
	if err != nil {
		return err
	}
	a.c, err = dial(a.url, key)
	return err
}

// args checks the number of arguments and names what is missing.
func args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		if len(got) < len(names) {
			return usageError{fmt.Errorf("%s is missing\nusage: %s", names[len(got)], cmd.UseLine())}
		}
		if len(got) > len(names) {
			return usageError{fmt.Errorf("too many arguments: %q\nusage: %s", got[len(names)], cmd.UseLine())}
		}
		return nil
	}
}
