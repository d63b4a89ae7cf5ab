package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/page"
)

func (a *app) snapshotCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "snapshot", Aliases: []string{"snap"}, Short: "Save sandboxes as templates, and manage those"}
	cmd.AddCommand(a.snapshotCreateCmd(), a.snapshotListCmd(), a.snapshotGetCmd(), a.snapshotRemoveCmd(), a.snapshotRenameCmd(), a.snapshotWhyCmd(), a.canRestoreCmd())
	return cmd
}

func (a *app) snapshotCreateCmd() *cobra.Command {
	var meta []string
	cmd := &cobra.Command{
		Use: "create SANDBOX NAME", Short: "Save a sandbox as a template; it keeps running", Args: args("SANDBOX", "NAME"),
		Example: "  covey snapshot create sb_... golden && covey create -t golden",
		RunE: func(cmd *cobra.Command, argv []string) error {
			l, err := labels("label", meta)
			if err != nil {
				return err
			}
			var res *sandboxv1.CreateSnapshotResponse
			err = a.while("Saving "+argv[0], func() (err error) {
				res, err = a.c.sandboxes.CreateSnapshot(cmd.Context(), &sandboxv1.CreateSnapshotRequest{SandboxId: argv[0], Name: argv[1], Metadata: l})
				return err
			})
			if err != nil {
				return err
			}
			return a.show(res.GetSnapshot(), func() { fmt.Fprintln(a.out, res.GetSnapshot().GetId()) })
		},
	}
	cmd.Flags().StringArrayVarP(&meta, "label", "l", nil, "label KEY=VALUE (repeatable)")
	return cmd
}

func (a *app) snapshotListCmd() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List templates, newest first", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := &snapshotv1.ListSnapshotsRequest{PageSize: 1000, AllKinds: all}
			list := &snapshotv1.ListSnapshotsResponse{}
			for p, err := range page.Each(&q.PageToken, func() (*snapshotv1.ListSnapshotsResponse, error) {
				return a.c.snapshots.ListSnapshots(cmd.Context(), q)
			}) {
				if err != nil {
					return err
				}
				list.Snapshots = append(list.Snapshots, p.GetSnapshots()...)
			}
			return a.show(list, func() {
				if len(list.GetSnapshots()) == 0 {
					fmt.Fprintln(a.err, "No templates. `covey snapshot create SANDBOX NAME` makes one.")
					return
				}
				var rows [][]string
				for _, s := range list.GetSnapshots() {
					rows = append(rows, []string{s.GetId(), dash(s.GetName()), name(s.GetKind(), "SNAPSHOT_KIND_"), name(s.GetState(), "SNAPSHOT_STATE_"), fmt.Sprint(s.GetVcpus()),
						fmt.Sprintf("%d MiB", s.GetMemoryMb()), size(s.GetUniqueBytes()), size(s.GetSharedBytes()), ago(s.GetCreateTime())})
				}
				a.table("ID NAME KIND STATE VCPUS MEMORY UNIQUE SHARED CREATED", rows)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "saved states of paused and forked sandboxes too")
	return cmd
}

// name is an enumeration's value as people write it.
func name(v fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(v.String(), prefix))
}

func (a *app) snapshotGetCmd() *cobra.Command {
	return &cobra.Command{
		Use: "get SNAPSHOT", Short: "Show a snapshot, by id or template name", Args: args("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			res, err := a.c.snapshots.GetSnapshot(cmd.Context(), &snapshotv1.GetSnapshotRequest{SnapshotId: argv[0]})
			if err != nil {
				return err
			}
			return a.show(res.GetSnapshot(), func() { a.snapshotFields(res.GetSnapshot()) })
		},
	}
}

func (a *app) snapshotFields(s *snapshotv1.Snapshot) {
	rows := [][]string{
		{"id", s.GetId()}, {"name", dash(s.GetName())}, {"kind", name(s.GetKind(), "SNAPSHOT_KIND_")}, {"state", name(s.GetState(), "SNAPSHOT_STATE_")},
		{"from sandbox", dash(s.GetSourceSandboxId())}, {"parent", dash(s.GetParentId())}, {"generation", fmt.Sprint(s.GetGeneration())},
		{"vcpus", fmt.Sprint(s.GetVcpus())}, {"memory", fmt.Sprintf("%d MiB", s.GetMemoryMb())}, {"disk", fmt.Sprintf("%d MiB", s.GetDiskMb())},
		{"unique", size(s.GetUniqueBytes())}, {"shared", size(s.GetSharedBytes())}, {"vmm", dash(s.GetVmm())}, {"created", ago(s.GetCreateTime())},
	}
	a.table("FIELD VALUE", append(rows, labelRows(s.GetMetadata())...))
}

func (a *app) snapshotRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rm SNAPSHOT...", Short: "Delete snapshots", Args: some("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.each(argv, func(id string) error {
				res, err := a.c.snapshots.DeleteSnapshot(cmd.Context(), &snapshotv1.DeleteSnapshotRequest{SnapshotId: id})
				if err != nil {
					return err
				}
				return a.show(res.GetSnapshot(), func() { fmt.Fprintln(a.out, id) })
			})
		},
	}
}

func (a *app) snapshotRenameCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rename SNAPSHOT NAME", Short: "Give a snapshot another name", Args: args("SNAPSHOT", "NAME"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			res, err := a.c.snapshots.RenameSnapshot(cmd.Context(), &snapshotv1.RenameSnapshotRequest{SnapshotId: argv[0], Name: argv[1]})
			if err != nil {
				return err
			}
			return a.show(res.GetSnapshot(), func() { fmt.Fprintf(a.out, "%s is now %s\n", res.GetSnapshot().GetId(), res.GetSnapshot().GetName()) })
		},
	}
}

func (a *app) snapshotWhyCmd() *cobra.Command {
	return &cobra.Command{
		Use: "why SNAPSHOT", Short: "Show what a snapshot consists of and what keeps it", Args: args("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			res, err := a.c.snapshots.ExplainSnapshot(cmd.Context(), &snapshotv1.ExplainSnapshotRequest{SnapshotId: argv[0]})
			if err != nil {
				return err
			}
			return a.show(res, func() {
				a.snapshotFields(res.GetSnapshot())
				fmt.Fprintln(a.out)
				var rows [][]string
				for _, b := range res.GetBuilds() {
					rows = append(rows, []string{b.GetId(), b.GetKind(), size(b.GetStoredBytes()), strings.Join(b.GetNamedBy(), " ")})
				}
				a.table("BUILD KIND STORED NAMED-BY", rows)
				if len(res.GetPinnedBy()) == 0 {
					fmt.Fprintln(a.out, "\nNothing keeps it from being deleted.")
				}
				for _, p := range res.GetPinnedBy() {
					fmt.Fprintln(a.out, "\nkept:", p)
				}
			})
		},
	}
}

func (a *app) canRestoreCmd() *cobra.Command {
	return &cobra.Command{
		Use: "can-restore SNAPSHOT", Short: "Show on which hosts a snapshot can be restored, and why not on the others", Args: args("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			res, err := a.c.operations.CanRestoreSnapshot(cmd.Context(), &sandboxv1.CanRestoreSnapshotRequest{SnapshotId: argv[0]})
			if err != nil {
				return err
			}
			return a.show(res, func() {
				var rows [][]string
				for _, v := range res.GetVerdicts() {
					rows = append(rows, []string{v.GetHostId(), map[bool]string{true: "yes", false: "no"}[v.GetCan()], strings.Join(v.GetReasons(), "; ")})
				}
				a.table("HOST CAN WHY", rows)
				fmt.Fprintf(a.out, "\n%s needs %s, machine %s, and of the CPU: %s\n", res.GetSnapshotId(), dash(res.GetDriver()), dash(res.GetMachine()),
					dash(strings.Join(res.GetCpuFeatures(), " ")))
			})
		},
	}
}
