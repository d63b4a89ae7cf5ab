package sandbox

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// watchBatch is how many rows or events are read at once.
const watchBatch = 200

// Watch calls send with the tenant's sandboxes as they are, or with token set with what changed since, and then with every change
// until ctx ends or send fails. The token given to send continues the watch after it; it is empty until the present state
// was sent whole. sandboxID narrows it to one.
func (s *Service) Watch(ctx context.Context, tenant, sandboxID, token string, send func(sb Sandbox, token string) error) error {
	if sandboxID != "" {
		if _, err := s.Get(ctx, tenant, sandboxID); err != nil {
			return err
		}
	}
	wake, stop := s.store.Subscribe(tenant, sandboxID)
	defer stop()
	first, last, err := s.store.EventRange(ctx, tenant)
	if err != nil {
		return err
	}
	after := last
	if token == "" {
		err = s.sendPresent(ctx, tenant, sandboxID, last, send)
	} else {
		after, err = parseResumeToken(token, first, last)
	}
	if err != nil {
		return err
	}
	return s.follows(ctx, tenant, sandboxID, after, wake, send)
}

// follows sends events as they come.
func (s *Service) follows(ctx context.Context, tenant, sandboxID string, after int64, wake <-chan struct{}, send func(Sandbox, string) error) error {
	tick := time.NewTicker(safetyTick)
	defer tick.Stop()
	for {
		events, err := s.store.Events(ctx, tenant, sandboxID, after, watchBatch)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := send(e.Sandbox, strconv.FormatInt(e.Seq, 10)); err != nil {
				return err
			}
			after = e.Seq
		}
		if len(events) == watchBatch {
			continue
		}
		select {
		case <-wake:
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sendPresent sends what there is. The events after last come after it; what they repeat is told by its version.
func (s *Service) sendPresent(ctx context.Context, tenant, sandboxID string, last int64, send func(Sandbox, string) error) error {
	token := strconv.FormatInt(last, 10)
	if sandboxID != "" {
		sb, err := s.store.Get(ctx, tenant, sandboxID)
		if err != nil {
			return err
		}
		return send(sb, token)
	}
	var from Page
	for {
		rows, err := s.store.List(ctx, tenant, nil, nil, from, watchBatch+1)
		if err != nil {
			return err
		}
		more := len(rows) > watchBatch
		rows = rows[:min(len(rows), watchBatch)]
		for i, sb := range rows {
			t := ""
			if !more && i == len(rows)-1 {
				t = token
			}
			if err := send(sb, t); err != nil {
				return err
			}
			from = Page{BeforeTime: sb.CreateTime, BeforeID: sb.ID}
		}
		if !more {
			return nil
		}
	}
}

func parseResumeToken(token string, first, last int64) (int64, error) {
	n, err := strconv.ParseInt(token, 10, 64)
	if err != nil || n < 0 || n > last {
		return 0, field("resume_token", "must be a token of this watch, got %q", clip(token))
	}
	if n+1 < first {
		return 0, &Error{
			Kind: OutOfRange, Reason: "RESUME_TOKEN_EXPIRED",
			Message: fmt.Sprintf("changes after %d are no longer kept; watch again without a token", n),
		}
	}
	return n, nil
}
