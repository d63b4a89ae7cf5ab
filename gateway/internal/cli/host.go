package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/services/chassis/page"
)

func (a *app) hostsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "hosts", Aliases: []string{"host"}, Short: "List the hosts, keep sandboxes off them, and empty them", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, q := &schedulerv1.ListHostsResponse{}, &schedulerv1.ListHostsRequest{PageSize: 1000}
			for p, err := range page.Each(&q.PageToken, func() (*schedulerv1.ListHostsResponse, error) { return a.c.hosts.ListHosts(cmd.Context(), q) }) {
				if err != nil {
					return err
				}
				all.Hosts = append(all.Hosts, p.GetHosts()...)
			}
			return a.show(all, func() { a.hostTable(all.GetHosts()) })
		},
	}
	cmd.AddCommand(a.cordonCmd("cordon", "Keep new sandboxes off a host", true), a.cordonCmd("uncordon", "Let new sandboxes on a host again", false), a.drainCmd(), a.baselineCmd())
	return cmd
}

func (a *app) cordonCmd(verb, short string, cordoned bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " HOST", Short: short, Args: args("HOST"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			res, err := a.c.hosts.CordonHost(cmd.Context(), &schedulerv1.CordonHostRequest{HostId: argv[0], Cordoned: new(cordoned)})
			if err != nil {
				return err
			}
			return a.show(res.GetHost(), func() { fmt.Fprintln(a.out, cordonLine(argv[0], cordoned, res.GetHost().GetState())) })
		},
	}
}

// cordonLine says what was done, and where that does not show in the host's state, which is one alone, that too.
func cordonLine(host string, cordoned bool, state schedulerv1.HostState) string {
	done, shows := "not cordoned", schedulerv1.HostState_HOST_STATE_READY
	if cordoned {
		done, shows = "cordoned", schedulerv1.HostState_HOST_STATE_CORDONED
	}
	if is := name(state, "HOST_STATE_"); state != shows {
		return fmt.Sprintf("%s is %s now, and %s", host, done, is)
	}
	return fmt.Sprintf("%s is %s", host, name(state, "HOST_STATE_"))
}

func (a *app) drainCmd() *cobra.Command {
	return &cobra.Command{
		Use: "drain HOST", Short: "Move all sandboxes off a host, and keep new ones off", Args: args("HOST"),
		Long: "Cordons the host, then pauses each sandbox on it and resumes it elsewhere once its saved state no longer depends on the host.\n" +
			"It can be interrupted and run again. `covey host uncordon` lets sandboxes on the host again.",
		RunE: func(cmd *cobra.Command, argv []string) error {
			st, err := a.c.operations.DrainHost(cmd.Context(), &sandboxv1.DrainHostRequest{HostId: argv[0]})
			if err != nil {
				return err
			}
			var last *sandboxv1.DrainHostResponse
			left := 0 // paused, though they ran
			for {
				m, err := st.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return err
				}
				last = m
				if m.GetStep() == sandboxv1.DrainStep_DRAIN_STEP_LEFT_PAUSED && m.GetReason() != "" {
					left++
				}
				if err := a.show(m, func() { fmt.Fprintln(a.out, drainLine(argv[0], m)) }); err != nil {
					return err
				}
			}
			if left > 0 {
				fmt.Fprintf(a.err, "No other host could take %d of them, which stay paused: make room and drain %s again, or `covey resume` them.\n", left, argv[0])
			}
			if n := last.GetRemaining(); n > 0 {
				return fmt.Errorf("%d of %d sandboxes still need %s; drain it again", n, last.GetTotal(), argv[0])
			}
			return nil
		},
	}
}

// drainLine says one thing that happened in a drain.
func drainLine(host string, m *sandboxv1.DrainHostResponse) string {
	what := ""
	switch m.GetStep() {
	case sandboxv1.DrainStep_DRAIN_STEP_CORDONED:
		return fmt.Sprintf("%s takes no new sandboxes; %d to move", host, m.GetTotal())
	case sandboxv1.DrainStep_DRAIN_STEP_DONE:
		if m.GetRemaining() == 0 {
			return fmt.Sprintf("%s is empty", host)
		}
		return fmt.Sprintf("%s is not empty", host)
	case sandboxv1.DrainStep_DRAIN_STEP_PAUSING:
		what = "is being paused"
	case sandboxv1.DrainStep_DRAIN_STEP_PAUSED:
		what = "is paused; its state is on its way to the registry"
	case sandboxv1.DrainStep_DRAIN_STEP_DURABLE:
		what = "no longer depends on " + host
	case sandboxv1.DrainStep_DRAIN_STEP_RESUMED:
		what = "runs on " + m.GetHostId()
	case sandboxv1.DrainStep_DRAIN_STEP_LEFT_PAUSED:
		what = "stays paused"
	case sandboxv1.DrainStep_DRAIN_STEP_ENDED:
		what = "has ended"
	case sandboxv1.DrainStep_DRAIN_STEP_FAILED:
		what = "could not be moved"
	default:
		what = strings.ToLower(m.GetStep().String()) // Of a newer gateway.
	}
	if m.GetReason() != "" {
		what += ": " + m.GetReason()
	}
	return fmt.Sprintf("[%d/%d] %s %s", m.GetTotal()-m.GetRemaining(), m.GetTotal(), m.GetSandboxId(), what)
}

func (a *app) hostTable(hosts []*schedulerv1.Host) {
	if len(hosts) == 0 {
		fmt.Fprintln(a.err, "The scheduler has heard of no host. One that has just started hears of all within seconds.")
		return
	}
	var rows [][]string
	for _, h := range hosts {
		c, u := h.GetCapacity(), h.GetUsed()
		rows = append(rows, []string{h.GetId(), name(h.GetState(), "HOST_STATE_"), fmt.Sprint(h.GetRunning()), fmt.Sprintf("%d/%d", u.GetVcpus(), c.GetVcpus()),
			fmt.Sprintf("%d/%d MiB", u.GetMemoryMb(), c.GetMemoryMb()), fmt.Sprintf("%d/%d MiB", u.GetDiskMb(), c.GetDiskMb()),
			dash(strings.Join(h.GetDrivers(), ",")), ago(h.GetHeartbeatTime())})
	}
	a.table("HOST STATE SANDBOXES VCPUS MEMORY DISK DRIVERS HEARD", rows)
}
