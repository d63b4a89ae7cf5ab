package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis/page"
)

// createFlags are the flags that describe a new sandbox.
type createFlags struct {
	req           sandboxv1.CreateSandboxRequest
	metadata, env []string
	hostLabels    []string
	noNetwork     bool
	allow, deny   []string
}

func (f *createFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.req.Template, "template", "t", "", "template name or id, or stock image: base, tiny (default base)")
	flags.Uint32Var(&f.req.Vcpus, "vcpus", 0, "virtual CPUs (default 1, or the template's)")
	flags.Uint32Var(&f.req.MemoryMb, "memory", 0, "memory in MiB (default 512, or the template's)")
	flags.Uint32Var(&f.req.DiskMb, "disk", 0, "disk in MiB (default the template's)")
	flags.Uint32Var(&f.req.TimeoutSec, "timeout", 0, "pause after so many seconds of inactivity (0: never)")
	flags.Uint32Var(&f.req.MaxLifetimeSec, "max-lifetime", 0, "destroy after so many seconds (0: never)")
	flags.BoolVar(&f.req.AutoResume, "auto-resume", false, "resume by itself when used while paused")
	flags.BoolVar(&f.req.ColdBoot, "cold-boot", false, "boot the kernel instead of restoring")
	flags.StringArrayVarP(&f.metadata, "label", "l", nil, "label KEY=VALUE (repeatable)")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment KEY=VALUE (repeatable)")
	flags.StringArrayVar(&f.hostLabels, "host-label", nil, "only on a host with label KEY=VALUE (repeatable)")
	flags.StringVar(&f.req.AntiAffinity, "anti-affinity", "", "on no host that runs one with the same NAME")
	flags.BoolVar(&f.noNetwork, "no-network", false, "no network")
	flags.StringArrayVar(&f.allow, "allow", nil, "IPv4 range it may reach beside the Internet (repeatable)")
	flags.StringArrayVar(&f.deny, "deny", nil, "IPv4 range it may not reach (repeatable)")
}

func (f *createFlags) request() (*sandboxv1.CreateSandboxRequest, error) {
	var err error
	if f.req.Metadata, err = labels("label", f.metadata); err != nil {
		return nil, err
	}
	if f.req.HostLabels, err = labels("host-label", f.hostLabels); err != nil {
		return nil, err
	}
	if f.req.Env, err = labels("env", f.env); err != nil {
		return nil, err
	}
	if f.noNetwork || len(f.allow)+len(f.deny) > 0 {
		f.req.Network = &sandboxv1.NetworkPolicy{Disabled: f.noNetwork, AllowCidrs: f.allow, DenyCidrs: f.deny}
	}
	return &f.req, nil
}

func (a *app) createCmd() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use: "create", Short: "Make a sandbox and print its id", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := f.request()
			if err != nil {
				return err
			}
			var res *sandboxv1.CreateSandboxResponse
			err = a.while("Starting a sandbox", func() (err error) {
				res, err = a.c.sandboxes.CreateSandbox(cmd.Context(), req)
				return err
			})
			if err != nil {
				return err
			}
			return a.show(res.GetSandbox(), func() { fmt.Fprintln(a.out, res.GetSandbox().GetId()) })
		},
	}
	f.add(cmd)
	return cmd
}

func stateName(s sandboxv1.State) string { return strings.TrimPrefix(s.String(), "STATE_") }

// parseState reads a state as people write it: running, Paused, STATE_FAILED.
func parseState(s string) (sandboxv1.State, error) {
	v, ok := sandboxv1.State_value["STATE_"+strings.TrimPrefix(strings.ToUpper(s), "STATE_")]
	if !ok || v == 0 {
		return 0, usageError{fmt.Errorf("--state: must be pending, starting, running, pausing, paused, resuming, stopping, stopped or failed, got %q", s)}
	}
	return sandboxv1.State(v), nil
}

func (a *app) sandboxTable(list []*sandboxv1.Sandbox) {
	rows := make([][]string, 0, len(list))
	for _, s := range list {
		rows = append(rows, []string{s.GetId(), stateName(s.GetState()), s.GetTemplate(), fmt.Sprint(s.GetVcpus()),
			fmt.Sprintf("%d MiB", s.GetMemoryMb()), dash(s.GetHostId()), ago(s.GetCreateTime()), s.GetReason()})
	}
	a.table("ID STATE TEMPLATE VCPUS MEMORY HOST CREATED REASON", rows)
}

func (a *app) listCmd() *cobra.Command {
	var states, filter []string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List sandboxes, newest first", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &sandboxv1.ListSandboxesRequest{PageSize: 1000}
			for _, s := range states {
				v, err := parseState(s)
				if err != nil {
					return err
				}
				req.States = append(req.States, v)
			}
			var err error
			if req.Metadata, err = labels("label", filter); err != nil {
				return err
			}
			all := &sandboxv1.ListSandboxesResponse{}
			for p, err := range page.Each(&req.PageToken, func() (*sandboxv1.ListSandboxesResponse, error) {
				return a.c.sandboxes.ListSandboxes(cmd.Context(), req)
			}) {
				if err != nil {
					return err
				}
				all.Sandboxes = append(all.Sandboxes, p.GetSandboxes()...)
			}
			return a.show(all, func() {
				if len(all.GetSandboxes()) == 0 {
					fmt.Fprintln(a.err, "No sandboxes. `covey create` makes one.")
					return
				}
				a.sandboxTable(all.GetSandboxes())
			})
		},
	}
	cmd.Flags().StringArrayVar(&states, "state", nil, "only this state (repeatable)")
	cmd.Flags().StringArrayVarP(&filter, "label", "l", nil, "only with label KEY=VALUE (repeatable)")
	return cmd
}

func (a *app) getCmd() *cobra.Command {
	return &cobra.Command{
		Use: "get SANDBOX", Short: "Show a sandbox", Args: args("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			res, err := a.c.sandboxes.GetSandbox(cmd.Context(), &sandboxv1.GetSandboxRequest{SandboxId: argv[0]})
			if err != nil {
				return err
			}
			s := res.GetSandbox()
			return a.show(s, func() {
				rows := [][]string{
					{"id", s.GetId()}, {"state", stateName(s.GetState())}, {"reason", dash(s.GetReason())}, {"template", s.GetTemplate()},
					{"vcpus", fmt.Sprint(s.GetVcpus())}, {"memory", fmt.Sprintf("%d MiB", s.GetMemoryMb())},
					{"disk", fmt.Sprintf("%d MiB", s.GetDiskMb())}, {"host", dash(s.GetHostId())}, {"created", ago(s.GetCreateTime())},
					{"last active", ago(s.GetLastActiveTime())}, {"timeout", fmt.Sprintf("%d s", s.GetTimeoutSec())},
					{"snapshot", dash(s.GetSnapshotId())}, {"forked from", dash(s.GetParentId())},
				}
				a.table("FIELD VALUE", append(rows, labelRows(s.GetMetadata())...))
			})
		},
	}
}

// about is an error about one of several arguments.
type about struct {
	what string
	error
}

func (e about) Unwrap() error { return e.error }

// each calls do for every argument and goes on after an error; it fails if any did.
func (a *app) each(argv []string, do func(id string) error) error {
	var errs []error
	for _, id := range argv {
		if err := do(id); err != nil {
			errs = append(errs, about{id, err})
		}
	}
	return errors.Join(errs...)
}

func some(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		if len(got) == 0 {
			return usageError{fmt.Errorf("%s is missing\nusage: %s", name, cmd.UseLine())}
		}
		return nil
	}
}

func (a *app) removeCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rm SANDBOX...", Short: "Destroy sandboxes", Args: some("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.each(argv, func(id string) error {
				res, err := a.c.sandboxes.DeleteSandbox(cmd.Context(), &sandboxv1.DeleteSandboxRequest{SandboxId: id})
				if err != nil {
					return err
				}
				return a.show(res.GetSandbox(), func() { fmt.Fprintln(a.out, id) })
			})
		},
	}
}

func (a *app) pauseCmd() *cobra.Command {
	return &cobra.Command{
		Use: "pause SANDBOX...", Short: "Save sandboxes to disk and free their memory", Args: some("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.each(argv, func(id string) error {
				began := time.Now()
				var res *sandboxv1.PauseSandboxResponse
				err := a.while("Pausing "+id, func() (err error) {
					res, err = a.c.sandboxes.PauseSandbox(cmd.Context(), &sandboxv1.PauseSandboxRequest{SandboxId: id})
					return err
				})
				if err != nil {
					return err
				}
				return a.show(res.GetSandbox(), func() {
					fmt.Fprintf(a.out, "%s paused in %d ms (%s)\n", id, time.Since(began).Milliseconds(), res.GetSandbox().GetSnapshotId())
				})
			})
		},
	}
}

func (a *app) resumeCmd() *cobra.Command {
	var host, policy string
	cmd := &cobra.Command{
		Use: "resume SANDBOX...", Short: "Start paused sandboxes again", Args: some("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			p, err := parsePolicy(policy)
			if err != nil {
				return err
			}
			return a.each(argv, func(id string) error {
				began := time.Now()
				var res *sandboxv1.ResumeSandboxResponse
				err := a.while("Resuming "+id, func() (err error) {
					res, err = a.c.sandboxes.ResumeSandbox(cmd.Context(), &sandboxv1.ResumeSandboxRequest{SandboxId: id, HostId: host, RestorePolicy: p})
					return err
				})
				if err != nil {
					return err
				}
				return a.show(res.GetSandbox(), func() {
					fmt.Fprintf(a.out, "%s runs on %s after %d ms\n", id, res.GetSandbox().GetHostId(), time.Since(began).Milliseconds())
				})
			})
		},
	}
	cmd.Flags().StringVar(&host, "host", "", "resume on this host")
	cmd.Flags().StringVar(&policy, "restore-policy", "", "memory_required, prefer_memory or disk_only")
	return cmd
}

func parsePolicy(s string) (sandboxv1.RestorePolicy, error) {
	if s == "" {
		return 0, nil
	}
	v, ok := sandboxv1.RestorePolicy_value["RESTORE_POLICY_"+strings.ToUpper(s)]
	if !ok || v == 0 {
		return 0, usageError{fmt.Errorf("--restore-policy: must be memory_required, prefer_memory or disk_only, got %q", s)}
	}
	return sandboxv1.RestorePolicy(v), nil
}

func (a *app) forkCmd() *cobra.Command {
	req := &sandboxv1.ForkSandboxRequest{}
	var meta []string
	cmd := &cobra.Command{
		Use: "fork SANDBOX", Short: "Make live copies of a sandbox", Args: args("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			var err error
			if req.Metadata, err = labels("label", meta); err != nil {
				return err
			}
			req.SandboxId = argv[0]
			var res *sandboxv1.ForkSandboxResponse
			err = a.while("Copying "+argv[0], func() (err error) {
				res, err = a.c.sandboxes.ForkSandbox(cmd.Context(), req)
				return err
			})
			if err != nil {
				return err
			}
			return a.show(res, func() {
				for _, s := range res.GetSandboxes() {
					fmt.Fprintln(a.out, s.GetId())
				}
				fmt.Fprintf(a.err, "source stood still for %.1f ms\n", float64(res.GetSourceStoppedUsec())/1000)
			})
		},
	}
	cmd.Flags().Uint32VarP(&req.Count, "count", "n", 1, "copies, 1 to 64")
	cmd.Flags().StringArrayVarP(&meta, "label", "l", nil, "label KEY=VALUE of the copies (repeatable)")
	return cmd
}

func (a *app) pingCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ping SANDBOX...", Short: "Reset the inactivity timer", Args: some("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.each(argv, func(id string) error {
				res, err := a.c.sandboxes.PingSandbox(cmd.Context(), &sandboxv1.PingSandboxRequest{SandboxId: id})
				if err != nil {
					return err
				}
				return a.show(res.GetSandbox(), func() {})
			})
		},
	}
}

func (a *app) receiptCmd() *cobra.Command {
	return &cobra.Command{
		Use: "receipt SANDBOX", Short: "Show how a sandbox was started: phases, pages, identity", Args: args("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			res, err := a.c.sandboxes.GetRestoreReceipt(cmd.Context(), &sandboxv1.GetRestoreReceiptRequest{SandboxId: argv[0]})
			if err != nil {
				return err
			}
			return a.show(res.GetReceipt(), func() { a.receipt(res.GetReceipt()) })
		},
	}
}

func (a *app) receipt(r *sandboxv1.RestoreReceipt) {
	fmt.Fprintf(a.out, "%s on %s by %s", strings.ToLower(strings.TrimPrefix(r.GetKind().String(), "START_KIND_")), r.GetHostId(), r.GetVmm())
	if r.GetSnapshotId() != "" {
		fmt.Fprintf(a.out, " from %s, generation %d", r.GetSnapshotId(), r.GetGeneration())
	}
	fmt.Fprintln(a.out)
	if r.GetFallbackReason() != "" {
		fmt.Fprintln(a.out, "memory was not restored:", r.GetFallbackReason())
	}
	var rows [][]string
	for _, p := range r.GetPhases() {
		bar := ""
		if t := r.GetTotalUsec(); t > 0 {
			bar = strings.Repeat("█", int(40*p.GetDurationUsec()/t))
		}
		rows = append(rows, []string{p.GetName(), fmt.Sprintf("%.1f ms", float64(p.GetDurationUsec())/1000), bar})
	}
	rows = append(rows, []string{"total", fmt.Sprintf("%.1f ms", float64(r.GetTotalUsec())/1000), ""})
	if r.GetFirstExecUsec() > 0 {
		rows = append(rows, []string{"first exec", fmt.Sprintf("%.1f ms", float64(r.GetFirstExecUsec())/1000), ""})
	}
	a.table("PHASE TIME SHARE", rows)
	rows = nil
	for _, s := range r.GetPageSources() {
		rows = append(rows, []string{s.GetSource(), fmt.Sprint(s.GetPages()), size(s.GetBytes())})
	}
	if len(rows) > 0 {
		fmt.Fprintln(a.out)
		a.table("PAGES-FROM PAGES READ", rows)
	}
	if t := r.GetAttestation(); t != nil {
		fmt.Fprintf(a.out, "\nidentity: hostname %s, machine-id %s, entropy reseeded %v, clock moved %.3f s, %d streams ended\n", t.GetHostname(),
			t.GetMachineId(), t.GetEntropyReseeded(), float64(t.GetClockStepNs())/1e9, t.GetStreamsEnded())
	}
}

func (a *app) watchCmd() *cobra.Command {
	req := &sandboxv1.WatchSandboxesRequest{}
	cmd := &cobra.Command{
		Use: "watch [SANDBOX]", Short: "Show changes of sandboxes as they happen, beginning with their state now", Args: atMostOne,
		RunE: func(cmd *cobra.Command, argv []string) error {
			if len(argv) == 1 {
				req.SandboxId = argv[0]
			}
			stream, err := a.c.sandboxes.WatchSandboxes(cmd.Context(), req)
			if err != nil {
				return err
			}
			for {
				ev, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				s := ev.GetSandbox()
				if err := a.show(ev, func() {
					fmt.Fprintf(a.out, "%s  %s  %-9s %s\n", s.GetStateTime().AsTime().Local().Format("15:04:05.000"), s.GetId(), stateName(s.GetState()), s.GetReason())
				}); err != nil {
					return err
				}
			}
		},
	}
	cmd.Flags().StringVar(&req.ResumeToken, "resume-token", "", "go on after this event, of one that was shown with -o json")
	return cmd
}
