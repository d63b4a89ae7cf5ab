package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// usageCmd shows what the tenant has used, has, and may have.
func (a *app) usageCmd() *cobra.Command {
	q := &sandboxv1.GetUsageRequest{}
	var since time.Duration
	var from, to string
	cmd := &cobra.Command{
		Use: "usage", Short: "Show what sandboxes have used, and the quota", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("since") {
				q.StartTime = timestamppb.New(time.Now().Add(-since))
			}
			if err := timeFlag("from", from, &q.StartTime); err != nil {
				return err
			}
			if err := timeFlag("to", to, &q.EndTime); err != nil {
				return err
			}
			tenants := sandboxv1.NewTenantServiceClient(a.c.conn)
			u, err := tenants.GetUsage(cmd.Context(), q)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.show(u, nil)
			}
			quota, err := tenants.GetQuota(cmd.Context(), &sandboxv1.GetQuotaRequest{TenantId: q.GetTenantId()})
			if err != nil {
				return err
			}
			a.usageTable(u, quota)
			return nil
		},
	}
	cmd.Flags().DurationVar(&since, "since", 0, "only the last so long, like 24h (default 30 days)")
	cmd.Flags().StringVar(&from, "from", "", "from this time on, like 2026-01-02T15:04:05Z")
	cmd.Flags().StringVar(&to, "to", "", "before this time (default now)")
	cmd.Flags().StringVar(&q.TenantId, "tenant", "", "of another tenant; needs a key of scope admin")
	return cmd
}

func (a *app) usageTable(u *sandboxv1.GetUsageResponse, quota *sandboxv1.GetQuotaResponse) {
	fmt.Fprintf(a.out, "tenant %s, %s to %s: %.1f vCPU seconds, %.1f GiB seconds, %d sandboxes\n\n", u.GetTenantId(),
		u.GetStartTime().AsTime().Format(time.RFC3339), u.GetEndTime().AsTime().Format(time.RFC3339), u.GetVcpuSeconds(), u.GetGibSeconds(), u.GetSandboxCount())
	var rows [][]string
	for _, s := range u.GetSandboxes() {
		rows = append(rows, []string{s.GetSandboxId(), fmt.Sprintf("%.1f s", s.GetRunningSeconds()), fmt.Sprintf("%.1f", s.GetVcpuSeconds()), fmt.Sprintf("%.1f", s.GetGibSeconds())})
	}
	a.table("SANDBOX RAN VCPU-SECONDS GIB-SECONDS", rows)
	fmt.Fprintln(a.out)
	a.quotaTable(quota)
}

func (a *app) quotaTable(quota *sandboxv1.GetQuotaResponse) {
	limit, use := quota.GetLimits(), quota.GetInUse()
	bound := func(n uint64) string {
		if n == 0 {
			return "none"
		}
		return fmt.Sprint(n)
	}
	a.table("QUOTA IN-USE LIMIT", [][]string{
		{"sandboxes", fmt.Sprint(use.GetSandboxes()), bound(uint64(limit.GetSandboxes()))},
		{"vcpus", fmt.Sprint(use.GetVcpus()), bound(uint64(limit.GetVcpus()))},
		{"memory_mb", fmt.Sprint(use.GetMemoryMb()), bound(limit.GetMemoryMb())},
		{"snapshots", fmt.Sprint(use.GetSnapshots()), bound(uint64(limit.GetSnapshots()))},
		{"snapshot_bytes", fmt.Sprint(use.GetSnapshotBytes()), bound(limit.GetSnapshotBytes())},
	})
}

// quotaCmd sets quotas.
func (a *app) quotaCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "quota", Short: "Show and set what tenants may have at once"}
	var sandboxes, vcpus, snapshots uint32
	var memory, bytes uint64
	set := &cobra.Command{
		Use: "set TENANT", Short: "Set a tenant's limits, all of them: what is not given becomes the mesh's default, 0 means no bound", Args: args("TENANT"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			l := &sandboxv1.Quota{}
			for name, set := range map[string]func(){
				"sandboxes": func() { l.Sandboxes = &sandboxes }, "vcpus": func() { l.Vcpus = &vcpus }, "memory": func() { l.MemoryMb = &memory },
				"snapshots": func() { l.Snapshots = &snapshots }, "snapshot-bytes": func() { l.SnapshotBytes = &bytes },
			} {
				if cmd.Flags().Changed(name) {
					set()
				}
			}
			res, err := sandboxv1.NewTenantServiceClient(a.c.conn).SetQuota(cmd.Context(), &sandboxv1.SetQuotaRequest{TenantId: argv[0], Limits: l})
			if err != nil {
				return err
			}
			return a.show(res, func() {
				fmt.Fprintf(a.out, "the limits of %s are set; `covey usage --tenant %s` shows them\n", argv[0], argv[0])
			})
		},
	}
	flags := set.Flags()
	flags.Uint32Var(&sandboxes, "sandboxes", 0, "sandboxes, paused ones included")
	flags.Uint32Var(&vcpus, "vcpus", 0, "virtual CPUs of running sandboxes")
	flags.Uint64Var(&memory, "memory", 0, "memory of running sandboxes, MiB")
	flags.Uint32Var(&snapshots, "snapshots", 0, "templates")
	flags.Uint64Var(&bytes, "snapshot-bytes", 0, "bytes stored")
	cmd.AddCommand(set, &cobra.Command{
		Use: "get [TENANT]", Short: "Show limits and what is in use; another tenant than one's own needs a key of scope admin", Args: atMostOne,
		RunE: func(cmd *cobra.Command, argv []string) error {
			q := &sandboxv1.GetQuotaRequest{}
			if len(argv) == 1 {
				q.TenantId = argv[0]
			}
			res, err := sandboxv1.NewTenantServiceClient(a.c.conn).GetQuota(cmd.Context(), q)
			if err != nil {
				return err
			}
			return a.show(res, func() { a.quotaTable(res) })
		},
	})
	return cmd
}
