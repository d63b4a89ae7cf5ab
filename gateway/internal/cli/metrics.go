package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// metricsCmd shows what a sandbox uses.
func (a *app) metricsCmd() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "metrics SANDBOX", Short: "Show what a running sandbox uses, now and in the last hour", Args: args("SANDBOX"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			m, err := a.c.sandboxes.GetSandboxMetrics(cmd.Context(), &sandboxv1.GetSandboxMetricsRequest{SandboxId: argv[0]})
			if err != nil {
				return err
			}
			return a.show(m, func() {
				used := m.GetGuestMemoryTotalBytes() - m.GetGuestMemoryAvailableBytes()
				a.table("METRIC VALUE", [][]string{
					{"cpu", short(time.Duration(m.GetCpuUsec()) * time.Microsecond)},
					{"cpu in guest", short(time.Duration(m.GetGuestCpuBusyUsec()) * time.Microsecond)},
					{"memory in guest", size(used) + " of " + size(m.GetGuestMemoryTotalBytes())},
					{"memory of its own", size(m.GetGuestPrivateBytes())},
					{"memory on host", size(m.GetHostPssBytes())},
					{"disk overlay", size(m.GetDiskOverlayBytes())},
				})
				a.historyTable(m.GetHistory(), all)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all samples of the last hour and not only the last minute's")
	return cmd
}

// lastMinute is how many samples there are in one.
const lastMinute = 6

func (a *app) historyTable(samples []*sandboxv1.SandboxMetricsSample, all bool) {
	if len(samples) == 0 {
		return
	}
	if !all {
		samples = samples[max(0, len(samples)-lastMinute):]
	}
	var rows [][]string
	for _, s := range samples {
		rows = append(rows, []string{s.GetTime().AsTime().Local().Format("15:04:05"), fmt.Sprintf("%.0f%%", 100*s.GetCpuFraction()), size(s.GetGuestPrivateBytes()), size(s.GetDiskOverlayBytes())})
	}
	fmt.Fprintln(a.out)
	a.table("TIME CPU MEMORY-OF-ITS-OWN OVERLAY", rows)
}
