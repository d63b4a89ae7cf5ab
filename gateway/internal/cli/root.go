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
	"github.com/spf13/pflag"
	"google.golang.org/grpc/status"
)

// app is what all commands share.
type app struct {
	url, key, output string
	caFile           string // of authorities of the gateway's certificate, PEM
	json             bool   // set by --json
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

// sandboxMissing tells that a NOT_FOUND is about the sandbox and not about what is in it.
func sandboxMissing(err error) bool {
	s, _ := status.FromError(err)
	return strings.HasPrefix(infoOf(s).GetReason(), "SANDBOX_")
}

// Groups of commands in the help.
const (
	forSandboxes = "sandboxes"
	forInside    = "inside"
	forTemplates = "templates"
	forTenants   = "tenants"
	forOperators = "operators"
)

// offline marks commands that call no gateway.
var offline = map[string]string{"offline": "true"}

func (a *app) root() *cobra.Command {
	url := os.Getenv("COVEY_URL")
	if url == "" {
		url = keptLogin().URL
	}
	if url == "" {
		url = "http://127.0.0.1:7070"
	}
	root := &cobra.Command{
		Use:   "covey",
		Short: "Run code in microVMs",
		Long:  "Covey runs untrusted code in microVMs that start in milliseconds, pause to disk, resume on any host and fork into many.",
		Example: "  covey run -- python3 -c 'print(6*7)'      a command in a sandbox of its own\n" +
			"  id=$(covey create)                        a sandbox that stays\n" +
			"  covey exec $id -- ls -l /                 a command in it\n" +
			"  covey shell $id                           a shell in it\n" +
			"  covey cp data.csv $id:                    a file into it\n" +
			"  covey pause $id; covey resume $id         saved, and running again\n" +
			"  covey rm $id",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.connect(cmd) },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.url, "url", url, "the gateway (COVEY_URL)")
	flags.StringVar(&a.key, "api-key", "", "API key (COVEY_API_KEY; default: that of covey auth login, or on this machine the local mesh's)")
	flags.StringVar(&a.caFile, "ca-file", os.Getenv("COVEY_CA_FILE"), "authorities of an https gateway's certificate, PEM (COVEY_CA_FILE; default: the machine's)")
	flags.StringVarP(&a.output, "output", "o", "table", "output: table or json, the API's own answers and errors")
	flags.BoolVar(&a.json, "json", false, "short for -o json")
	root.SetFlagErrorFunc(wrongFlag)
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{forSandboxes, "Sandboxes:", []*cobra.Command{
			a.runCmd(), a.createCmd(), a.listCmd(), a.getCmd(), a.pauseCmd(), a.resumeCmd(), a.forkCmd(), a.pingCmd(), a.removeCmd(), a.watchCmd(), a.receiptCmd(),
			a.metricsCmd(), a.logsCmd(), a.traceCmd(),
		}},
		{forInside, "In a sandbox:", []*cobra.Command{
			a.execCmd(), a.shellCmd(), a.attachCmd(), a.processesCmd(), a.killCmd(), a.copyCmd(), a.filesCmd(), a.portCmd(), a.forwardCmd(),
		}},
		{forTemplates, "Templates:", []*cobra.Command{a.snapshotCmd()}},
		{forTenants, "Keys and quotas:", []*cobra.Command{a.authCmd(), a.keysCmd(), a.usageCmd(), a.quotaCmd(), a.auditCmd()}},
		{forOperators, "Hosts:", []*cobra.Command{a.hostsCmd(), a.placeCmd()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.id
		}
		root.AddCommand(g.commands...)
	}
	onlyKnown(root)
	return root
}

// onlyKnown makes every command that has commands of its own refuse names that are none of them, which cobra would take for a call for help.
func onlyKnown(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		onlyKnown(c)
	}
	if !cmd.HasSubCommands() || !cmd.HasParent() {
		return
	}
	cmd.Args = func(cmd *cobra.Command, got []string) error {
		if len(got) == 0 {
			return nil
		}
		var names []string
		for _, c := range cmd.Commands() {
			names = append(names, c.Name())
		}
		return usageError{fmt.Errorf("unknown command %q for %q; it has %s", got[0], cmd.CommandPath(), strings.Join(names, ", "))}
	}
	if cmd.RunE == nil {
		cmd.Annotations = offline
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
}

// wrongFlag says what a flag takes, and where all flags are told.
func wrongFlag(cmd *cobra.Command, err error) error {
	var value *pflag.InvalidValueError
	if errors.As(err, &value) {
		flag := value.GetFlag()
		what := map[string]string{
			"uint32": "a whole number from 0 on", "uint64": "a whole number from 0 on", "int": "a whole number", "int64": "a whole number", "duration": "a time like 90s or 24h",
			"bool": "true or false",
		}[flag.Value.Type()]
		if what == "" {
			what = "a " + flag.Value.Type()
		}
		err = fmt.Errorf("--%s: must be %s, got %q", flag.Name, what, value.GetValue())
	}
	return usageError{fmt.Errorf("%w\n`%s --help` lists the flags", err, cmd.CommandPath())}
}

// connect dials lazily: gRPC connects at the first call, so help and usage errors need no gateway.
func (a *app) connect(cmd *cobra.Command) error {
	if a.json {
		a.output = "json"
	}
	if a.output != "table" && a.output != "json" {
		return usageError{fmt.Errorf("--output: must be table or json, got %q", a.output)}
	}
	if cmd.Annotations["offline"] != "" || cmd.Name() == "help" || cmd.Name() == "completion" || cmd.Parent() != nil && cmd.Parent().Name() == "completion" {
		return nil
	}
	if l := keptLogin(); a.caFile == "" && l.URL == a.url {
		a.caFile = l.CAFile
	}
	key, err := findKey(a.url, a.key)
	if err != nil {
		return err
	}
	a.c, err = dial(a.url, key, a.caFile)
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

// atMostOne checks that there is one argument or none.
func atMostOne(cmd *cobra.Command, got []string) error {
	if len(got) > 1 {
		return usageError{fmt.Errorf("too many arguments: %q\nusage: %s", got[1], cmd.UseLine())}
	}
	return nil
}
