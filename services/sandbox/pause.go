package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Pause saves a running sandbox and frees its host. A paused one is answered as it is; a second pause while one is under way
// waits for it and answers the same.
func (s *Service) Pause(ctx context.Context, tenant, id, requestID string) (Sandbox, error) {
	if err := errors.Join(checkSandboxID(id), checkRequestID(requestID)); err != nil {
		return Sandbox{}, err
	}
	return s.do(ctx, operation{
		op: OpPause, tenant: tenant, sandboxID: id, requestID: requestID, request: id,
		decide: s.decidePause,
	})
}

func (s *Service) decidePause(sb *Sandbox, w Work, _ bool) (verdict, error) {
	switch sb.State {
	case Paused:
		return settled, nil
	case Pausing:
		return join, nil
	case Running:
		w.SnapshotID = newID(snapshotPrefix)
		return act, sb.begin(Pausing, w, s.owner)
	}
	return act, sb.illegal(OpPause, Running)
}

// performPause takes a sandbox from PAUSING to PAUSED; back to RUNNING where that failed and it still runs, and to FAILED
// where its VM is gone.
func (s *Service) performPause(ctx context.Context, sb Sandbox) Outcome {
	now := sb
	snapshot := sb.Work.SnapshotID
	at, err := s.pauseOnHost(ctx, sb)
	if errors.Is(err, Precondition) {
		if own := s.hostsOwnPause(ctx, sb); own.SnapshotID != "" {
			err, snapshot, at = nil, own.SnapshotID, own.StateTime
		}
	}
	var c Change
	if err == nil {
		now.pausedTo(snapshot)
		if sb.Work.Op == OpDrain {
			now.Reason = fmt.Sprintf("host %s was emptied", sb.HostID)
		}
		c.Since, c.Chores, c.Receipts = since(sb, at), liveLeftovers(sb), s.lastReceipt(ctx, sb)
		err = now.become(Paused)
	} else if reason, at := s.vanished(ctx, sb); reason != "" {
		c.Since = since(sb, at)
		c.Chores = append(leftovers(sb), Chore{Kind: DropSnapshot, SandboxID: sb.ID, SnapshotID: sb.Work.SnapshotID, HostID: sb.HostID})
		err = &Error{
			Kind: Precondition, Reason: "SANDBOX_FAILED", Message: fmt.Sprintf("sandbox %s has failed: %s", sb.ID, reason),
			Meta: map[string]string{"sandbox_id": sb.ID, "state": string(Failed)},
		}
		if e := now.end(Failed, reason); e != nil {
			err = e
		}
	} else if e := now.become(Running); e != nil {
		err = e
	}
	return s.conclude(ctx, []Sandbox{now}, err, c, Outcome{})
}

// hostsOwnPause is the sandbox as the host has paused it by itself meanwhile, for which it waits where that is under way; without a snapshot
// where it has not.
func (s *Service) hostsOwnPause(ctx context.Context, sb Sandbox) (none HostSandbox) {
	tick := time.NewTicker(catchUpTick)
	defer tick.Stop()
	for {
		list, err := s.hosts.Sandboxes(ctx, sb.HostID)
		i := slices.IndexFunc(list, func(h HostSandbox) bool { return h.ID == sb.ID })
		switch {
		case err != nil || i < 0:
			return none
		case list[i].State == Paused:
			return list[i]
		case list[i].State != Pausing:
			return none
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return none
		}
	}
}

// lastReceipt is the record of the life that has just ended on its host, with what it has counted until then; empty where the host
// does not have it any more.
func (s *Service) lastReceipt(ctx context.Context, sb Sandbox) map[string][]byte {
	ctx, cancel := context.WithTimeout(ctx, receiptTime)
	defer cancel()
	b, err := s.hosts.Receipt(ctx, sb.HostID, sb.ID)
	if err != nil {
		s.log.Info("the receipt stays as it was at the start", "sandbox_id", sb.ID, "host_id", sb.HostID, "error", err)
		return nil
	}
	return receipts(sb.ID, Started{Receipt: b})
}

// receiptTime bounds what a pause waits for its receipt.
const receiptTime = 2 * time.Second

// pausedTo makes the snapshot the sandbox's saved state, which names no other snapshot.
func (s *Sandbox) pausedTo(snapshot string) {
	s.SnapshotID, s.BaseSnapshotID, s.SourceSnapshotID, s.Durable = snapshot, "", "", false
}

// pauseOnHost asks the host until it answers, for a time: a host agent that is being restarted has kept the VM.
func (s *Service) pauseOnHost(ctx context.Context, sb Sandbox) (at time.Time, err error) {
	err = s.persist(ctx, func() (err error) {
		at, err = s.hosts.Pause(ctx, sb.HostID, sb.ID, sb.Work.Life, sb.Work.SnapshotID)
		return err
	})
	return at, err
}

// persist repeats a call while who is called is out of reach, for a time: what was killed is started again.
func (s *Service) persist(ctx context.Context, call func() error) error {
	giveUp := time.NewTimer(s.timing.Unreachable)
	defer giveUp.Stop()
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
		err := call()
		if !errors.Is(err, Unavailable) {
			return err
		}
		again := time.NewTimer(delay)
		select {
		case <-again.C:
			continue
		case <-giveUp.C:
		case <-ctx.Done():
		}
		again.Stop()
		return err
	}
}

// vanished says why and since when a sandbox whose pause failed does not run any more; no reason where it does, or where that cannot be known now.
func (s *Service) vanished(ctx context.Context, sb Sandbox) (reason string, at time.Time) {
	if s.gone(ctx) != nil {
		return "", at
	}
	ctx, cancel := cleanup(ctx)
	defer cancel()
	list, err := s.hosts.Sandboxes(ctx, sb.HostID)
	if err != nil {
		return "", at
	}
	i := slices.IndexFunc(list, func(h HostSandbox) bool { return h.ID == sb.ID })
	switch {
	case i < 0:
		return fmt.Sprintf("it was no longer on host %s when it was to be paused", sb.HostID), at
	case list[i].State.Final():
		return because(list[i], sb.HostID), list[i].StateTime
	}
	return "", at
}

// because is the reason that a host gives for a sandbox's end.
func because(h HostSandbox, hostID string) string {
	if h.Reason != "" {
		return h.Reason
	}
	return fmt.Sprintf("host %s ended it", hostID)
}
