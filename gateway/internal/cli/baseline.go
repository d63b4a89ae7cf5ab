package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
)

func (a *app) baselineCmd() *cobra.Command {
	var label string
	cmd := &cobra.Command{
		Use: "baseline", Short: "Show the CPU features that the hosts of a pool have in common, and what bounds those of guests", Args: args(),
		Long: "A baseline has the only CPU features that guests booted in a pool from now on may have, so that their snapshots run on every host of\n" +
			"it. Snapshots that there are keep the processor that they were made with. A pool is the hosts with a label, or all hosts.",
		Example: "  covey hosts baseline --label pool=general\n  covey hosts baseline set --label pool=general --common",
		RunE: func(cmd *cobra.Command, _ []string) error {
			res, err := a.c.hosts.GetBaseline(cmd.Context(), &schedulerv1.GetBaselineRequest{Label: label})
			if err != nil {
				return err
			}
			return a.show(res, func() { a.baselineTable(res) })
		},
	}
	cmd.PersistentFlags().StringVar(&label, "label", "", "the pool: hosts with label KEY=VALUE (default: all hosts)")
	cmd.AddCommand(a.setBaselineCmd(&label), a.clearBaselineCmd(&label))
	return cmd
}

func (a *app) setBaselineCmd(label *string) *cobra.Command {
	q := &schedulerv1.SetBaselineRequest{}
	cmd := &cobra.Command{
		Use: "set --common | --features A,B", Short: "Bound the CPU features of guests that a pool boots from now on", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Common == (len(q.Features) > 0) {
				return usageError{errors.New("either --common or --features must be given")}
			}
			q.Label = *label
			res, err := a.c.hosts.SetBaseline(cmd.Context(), q)
			if err != nil {
				return err
			}
			return a.show(res.GetBaseline(), func() {
				fmt.Fprintf(a.out, "%s: %s\n", poolName(*label), strings.Join(res.GetBaseline().GetFeatures(), " "))
			})
		},
	}
	cmd.Flags().BoolVar(&q.Common, "common", false, "those that all hosts of the pool have now")
	cmd.Flags().StringSliceVar(&q.Features, "features", nil, "these, by their names in /proc/cpuinfo")
	return cmd
}

func (a *app) clearBaselineCmd(label *string) *cobra.Command {
	return &cobra.Command{
		Use: "clear", Short: "Let guests that a pool boots from now on have all that their hosts have", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			res, err := a.c.hosts.ClearBaseline(cmd.Context(), &schedulerv1.ClearBaselineRequest{Label: *label})
			if err != nil {
				return err
			}
			return a.show(res, func() { fmt.Fprintf(a.out, "%s: no baseline\n", poolName(*label)) })
		},
	}
}

func poolName(label string) string {
	if label == "" {
		return "all hosts"
	}
	return label
}

func (a *app) baselineTable(r *schedulerv1.GetBaselineResponse) {
	bound := "none"
	if r.GetBaseline() != nil {
		bound = strings.Join(r.GetBaseline().GetFeatures(), " ")
	}
	fmt.Fprintf(a.out, "baseline: %s\nin common: %s\n\n", bound, dash(strings.Join(r.GetCommonFeatures(), " ")))
	var rows [][]string
	for _, h := range r.GetHosts() {
		rows = append(rows, []string{h.GetHostId(), dash(h.GetDriver()), dash(strings.Join(h.GetBeyondFeatures(), " ")), dash(strings.Join(h.GetLackingFeatures(), " ")),
			fmt.Sprint(len(h.GetGuestFeatures()))})
	}
	a.table("HOST DRIVER HAS-BEYOND LACKS-OF-BASELINE GUESTS-HAVE", rows)
}
