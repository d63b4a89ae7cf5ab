package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/page"
)

func (a *app) logsCmd() *cobra.Command {
	q := &sandboxv1.ReadSandboxLogsRequest{}
	cmd := &cobra.Command{
		Use: "logs SANDBOX", Short: "Print the console of a sandbox's machine", Args: args("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			q.SandboxId = argv[0]
			st, err := a.c.sandboxes.ReadSandboxLogs(cmd.Context(), q)
			if err != nil {
				return err
			}
			for {
				m, err := st.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if _, err := a.out.Write(m.GetData()); err != nil {
					return err
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what is written from now on")
	cmd.Flags().Int64Var(&q.TailBytes, "tail", 0, "only the last so many bytes")
	return cmd
}

func (a *app) placeCmd() *cobra.Command {
	var explain bool
	var meta []string
	p := &schedulerv1.PlaceRequest{Resources: &schedulerv1.Resources{Slots: 1}}
	cmd := &cobra.Command{
		Use: "place --explain", Short: "Show which host a sandbox would go to, and why not to the others", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !explain {
				return usageError{errors.New("place only explains: add --explain; `covey create` places a sandbox")}
			}
			var err error
			if p.HostLabels, err = labels("host-label", meta); err != nil {
				return err
			}
			if p.SnapshotId != "" {
				if err := a.needs(cmd, p); err != nil {
					return err
				}
			}
			res, err := a.c.hosts.ExplainPlacement(cmd.Context(), &schedulerv1.ExplainPlacementRequest{Place: p})
			if err != nil {
				return err
			}
			return a.show(res, func() {
				var rows [][]string
				for _, v := range res.GetVerdicts() {
					fits := "no"
					if v.GetFits() {
						fits = fmt.Sprintf("%.3f", v.GetScore())
					}
					if v.GetHostId() == res.GetChosenHostId() {
						fits += " ←"
					}
					rows = append(rows, []string{v.GetHostId(), fits, strings.Join(v.GetReasons(), "; ")})
				}
				a.table("HOST FITS WHY", rows)
				fmt.Fprintln(a.out, "\n"+res.GetSummary())
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&explain, "explain", false, "explain, and place nothing")
	flags.Uint32Var(&p.Resources.Vcpus, "vcpus", 1, "virtual CPUs (with --snapshot, its own)")
	flags.Uint64Var(&p.Resources.MemoryMb, "memory", 512, "memory in MiB (with --snapshot, its own)")
	flags.Uint64Var(&p.Resources.DiskMb, "disk", 8192, "disk in MiB (with --snapshot, its own)")
	flags.StringVar(&p.SnapshotId, "snapshot", "", "template name or snapshot id that it would start from")
	flags.StringArrayVar(&meta, "host-label", nil, "only hosts with label KEY=VALUE (repeatable)")
	return cmd
}

// needs fills in what a start from a snapshot asks of its host, and what it would take where no flag says otherwise.
func (a *app) needs(cmd *cobra.Command, p *schedulerv1.PlaceRequest) error {
	snap, err := a.c.snapshots.GetSnapshot(cmd.Context(), &snapshotv1.GetSnapshotRequest{SnapshotId: p.GetSnapshotId()})
	if err != nil {
		return err
	}
	res, err := a.c.operations.CanRestoreSnapshot(cmd.Context(), &sandboxv1.CanRestoreSnapshotRequest{SnapshotId: snap.GetSnapshot().GetId()})
	if err != nil {
		return err
	}
	p.SnapshotId, p.Vmm, p.Machine, p.CpuFeatures = res.GetSnapshotId(), res.GetDriver(), res.GetMachine(), res.GetCpuFeatures()
	own, flags := snap.GetSnapshot(), cmd.Flags()
	if !flags.Changed("vcpus") {
		p.Resources.Vcpus = own.GetVcpus()
	}
	if !flags.Changed("memory") {
		p.Resources.MemoryMb = uint64(own.GetMemoryMb())
	}
	if !flags.Changed("disk") {
		p.Resources.DiskMb = uint64(own.GetDiskMb())
	}
	return nil
}

func (a *app) keysCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Manage API keys"}
	create := &sandboxv1.CreateKeyRequest{}
	createCmd := &cobra.Command{
		Use: "create NAME", Short: "Make a key and print it; it is shown this once", Args: args("NAME"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			create.Name = argv[0]
			res, err := a.c.keys.CreateKey(cmd.Context(), create)
			if err != nil {
				return err
			}
			return a.show(res, func() {
				fmt.Fprintln(a.out, res.GetSecret())
				fmt.Fprintf(a.err, "%s may %s. The key is shown this once; `covey keys revoke %s` ends it.\n", res.GetKey().GetId(),
					strings.Join(res.GetKey().GetScopes(), ", "), res.GetKey().GetId())
			})
		},
	}
	createCmd.Flags().StringSliceVar(&create.Scopes, "scope", nil, "read, write, admin (default read,write)")
	createCmd.Flags().StringVar(&create.TenantId, "tenant", "", "for another tenant")
	cmd.AddCommand(createCmd, &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List keys, newest first", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, q := &sandboxv1.ListKeysResponse{}, &sandboxv1.ListKeysRequest{PageSize: 1000}
			for p, err := range page.Each(&q.PageToken, func() (*sandboxv1.ListKeysResponse, error) { return a.c.keys.ListKeys(cmd.Context(), q) }) {
				if err != nil {
					return err
				}
				all.Keys = append(all.Keys, p.GetKeys()...)
			}
			return a.show(all, func() {
				var rows [][]string
				for _, k := range all.GetKeys() {
					state := "valid"
					if k.GetRevokeTime() != nil {
						state = "revoked " + ago(k.GetRevokeTime())
					}
					rows = append(rows, []string{k.GetId(), k.GetName(), strings.Join(k.GetScopes(), ","), state, ago(k.GetCreateTime()), ago(k.GetLastUseTime())})
				}
				a.table("KEY NAME SCOPES STATE CREATED USED", rows)
			})
		},
	}, &cobra.Command{
		Use: "revoke KEY...", Aliases: []string{"rm"}, Short: "End keys", Args: some("KEY"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.each(argv, func(id string) error {
				res, err := a.c.keys.RevokeKey(cmd.Context(), &sandboxv1.RevokeKeyRequest{KeyId: id})
				if err != nil {
					return err
				}
				return a.show(res, func() { fmt.Fprintln(a.out, id, "revoked") })
			})
		},
	})
	return cmd
}

// labelRows are labels in the order of their keys.
func labelRows(m map[string]string) [][]string {
	var rows [][]string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		rows = append(rows, []string{"label " + k, m[k]})
	}
	return rows
}
