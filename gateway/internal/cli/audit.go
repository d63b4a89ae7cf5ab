package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// maxAuditPage is the most that one answer has.
const maxAuditPage = 1000

// auditCmd shows who did what, and what was refused.
func (a *app) auditCmd() *cobra.Command {
	q := &sandboxv1.ListAuditEventsRequest{}
	var since time.Duration
	var from, to string
	var limit int
	cmd := &cobra.Command{
		Use: "audit", Short: "Show who did what and what was refused, newest first", Args: args(),
		Example: "  covey audit --target SANDBOX\n  covey audit --result PERMISSION_DENIED --since 1h\n  covey audit --tenant - --method Exec",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usageError{fmt.Errorf("--limit: must be at least 1, got %d", limit)}
			}
			var err error
			if since > 0 {
				q.StartTime = timestamppb.New(time.Now().Add(-since))
			}
			if err = timeFlag("from", from, &q.StartTime); err == nil {
				err = timeFlag("to", to, &q.EndTime)
			}
			if err != nil {
				return err
			}
			res, err := a.auditPages(cmd, q, limit)
			if err != nil {
				return err
			}
			return a.show(res, func() { a.auditTable(res.GetEvents()) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&q.TenantId, "tenant", "", `of another tenant; "-" for all, also calls without a good key`)
	flags.StringVar(&q.Target, "target", "", "only what was done to this sandbox, snapshot, host or key")
	flags.StringVar(&q.KeyId, "key", "", "only with this API key")
	flags.StringVar(&q.Method, "method", "", "only this method, like Exec")
	flags.StringVar(&q.Code, "result", "", "only with this result, like OK or PERMISSION_DENIED")
	flags.DurationVar(&since, "since", 0, "only the last so long, like 24h")
	flags.StringVar(&from, "from", "", "from this time on, like 2026-01-02T15:04:05Z")
	flags.StringVar(&to, "to", "", "before this time")
	flags.IntVar(&limit, "limit", 100, "most lines")
	return cmd
}

// timeFlag reads a flag's time; an empty one leaves what is there.
func timeFlag(name, text string, to **timestamppb.Timestamp) error {
	if text == "" {
		return nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return usageError{fmt.Errorf("--%s: must be a time like 2026-01-02T15:04:05Z, got %q", name, text)}
	}
	*to = timestamppb.New(at)
	return nil
}

// auditPages reads pages until there are enough events.
func (a *app) auditPages(cmd *cobra.Command, q *sandboxv1.ListAuditEventsRequest, limit int) (*sandboxv1.ListAuditEventsResponse, error) {
	all := &sandboxv1.ListAuditEventsResponse{}
	for {
		q.PageSize = uint32(min(limit-len(all.GetEvents()), maxAuditPage))
		page, err := sandboxv1.NewTenantServiceClient(a.c.conn).ListAuditEvents(cmd.Context(), q)
		if err != nil {
			return nil, err
		}
		all.Events = append(all.Events, page.GetEvents()...)
		all.NextPageToken = page.GetNextPageToken()
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" || len(all.GetEvents()) >= limit {
			return all, nil
		}
	}
}

func (a *app) auditTable(events []*sandboxv1.AuditEvent) {
	var rows [][]string
	for _, e := range events {
		end := e.GetCode()
		if e.GetReason() != "" {
			end += " " + e.GetReason()
		}
		method := e.GetMethod()
		if e.GetCount() > 1 {
			method = fmt.Sprintf("%s (%d times)", method, e.GetCount())
		}
		rows = append(rows, []string{
			e.GetTime().AsTime().Format(time.RFC3339), dash(e.GetTenantId()), dash(e.GetKeyId()), dash(method), dash(e.GetTarget()), dash(e.GetDetail()), dash(end), dash(e.GetRequestId()),
		})
	}
	a.table("TIME TENANT KEY METHOD TARGET DETAIL RESULT REQUEST", rows)
}
