package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// maxRewatch is the longest pause before a broken watch is opened again.
const maxRewatch = 5 * time.Second

// hostWatch compares one host with the database: whenever the host's stream tells of an end, and every few seconds. The
// stream is only what wakes it. What it believes is a list of the host read after the rows were read: an event may be of
// a former life of a sandbox that has been resumed since, a fresh list is not.
type hostWatch struct {
	s      *Service
	hostID string
	cancel context.CancelFunc
	// ended wakes the comparison; capacity 1, never closed.
	ended chan struct{}
	// strangers is since when a VM that no row accounts for has been seen, and missing since when a running sandbox has not
	// been on its host; only the comparing goroutine uses them.
	strangers, missing map[string]time.Time
}

// newHostWatch starts watching a host; wg waits for its end after ctx or cancel.
func newHostWatch(ctx context.Context, s *Service, hostID string, wg *sync.WaitGroup) *hostWatch {
	ctx, cancel := context.WithCancel(ctx)
	w := &hostWatch{s: s, hostID: hostID, cancel: cancel, ended: make(chan struct{}, 1), strangers: map[string]time.Time{}, missing: map[string]time.Time{}}
	wg.Go(func() { w.listen(ctx) })
	wg.Go(func() { w.compareAlways(ctx) })
	return w
}

// listen keeps the host's stream open.
func (w *hostWatch) listen(ctx context.Context) {
	delay := 100 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := w.s.hosts.Watch(ctx, w.hostID, func(h HostSandbox) {
			if h.Held() {
				return
			}
			select {
			case w.ended <- struct{}{}:
			default:
			}
		})
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxRewatch {
			delay = 100 * time.Millisecond
		}
		w.s.log.Info("watch of host broke; opening it again", "host_id", w.hostID, "after", delay, "error", err)
		again := time.NewTimer(delay)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
		}
		delay = min(2*delay, maxRewatch)
	}
}

func (w *hostWatch) compareAlways(ctx context.Context) {
	tick := time.NewTicker(w.s.timing.Reconcile)
	defer tick.Stop()
	for {
		if err := w.compare(ctx); err != nil && ctx.Err() == nil {
			w.s.log.Info("host could not be compared", "host_id", w.hostID, "error", err)
		}
		select {
		case <-w.ended:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// compare reads the rows first and the host then: a row that was RUNNING before had its VM before.
func (w *hostWatch) compare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	rows, err := w.s.store.OnHost(ctx, w.hostID)
	if err != nil {
		return err
	}
	list, err := w.s.hosts.Sandboxes(ctx, w.hostID)
	if err != nil {
		return err
	}
	here := make(map[string]HostSandbox, len(list))
	used := map[string]time.Time{}
	for _, h := range list {
		here[h.ID] = h
		if h.State == Running && !h.LastActiveTime.IsZero() {
			used[h.ID] = h.LastActiveTime
		}
	}
	missing := map[string]time.Time{}
	for _, sb := range rows {
		h, found := here[sb.ID]
		switch {
		case sb.State == Paused:
			w.s.resumeDrained(ctx, sb)
		case sb.State != Running:
		case found:
			w.s.judge(ctx, sb, h)
		default:
			w.miss(ctx, sb, missing)
		}
	}
	w.missing = missing
	err = w.expel(ctx, list)
	if len(used) == 0 {
		return err
	}
	return errors.Join(err, w.s.store.Touch(ctx, used))
}

// judge makes a running row what its host says of it.
func (s *Service) judge(ctx context.Context, sb Sandbox, h HostSandbox) {
	switch {
	case h.State == Failed, h.State == Stopped:
		s.found(ctx, sb, h.State, because(h, sb.HostID), h.StateTime)
	case h.State == Paused && h.SnapshotID != "" && h.SnapshotID != sb.BaseSnapshotID:
		s.foundPaused(ctx, sb, h)
	}
}

// miss makes a running row STOPPED once its host has not known it twice, a tick apart: a host agent that has just started
// may not have taken all of its VMs back yet.
func (w *hostWatch) miss(ctx context.Context, sb Sandbox, missing map[string]time.Time) {
	since, again := w.missing[sb.ID]
	if again && time.Since(since) >= w.s.timing.Reconcile/2 {
		w.s.found(ctx, sb, Stopped, fmt.Sprintf("it was no longer on host %s", w.hostID), since)
		return
	}
	if !again {
		since = time.Now()
	}
	missing[sb.ID] = since
}

// expel ends VMs that no row accounts for, once they have been there for a grace. The rows are read after the list, and only the lives in
// the list are ended: one that is begun meanwhile is another.
func (w *hostWatch) expel(ctx context.Context, list []HostSandbox) error {
	var held []string
	lives := map[string]string{} // their restore ids
	for _, h := range list {
		if h.Held() && h.State != Stopping {
			held = append(held, h.ID)
			lives[h.ID] = h.RestoreID
		}
	}
	strangers := map[string]time.Time{}
	rows, err := w.s.store.Find(ctx, held)
	if err != nil {
		return err
	}
	for _, id := range held {
		sb, found := rows[id]
		if found && sb.HostID == w.hostID && !sb.State.Final() && sb.State != Paused {
			continue
		}
		since, seen := w.strangers[id]
		if !seen {
			since = time.Now()
		}
		strangers[id] = since
		if time.Since(since) < w.s.timing.UnknownGrace {
			continue
		}
		w.s.log.Warn("ending a VM that no sandbox accounts for", "sandbox_id", id, "host_id", w.hostID, "row", found, "state", sb.State)
		if err := w.s.hosts.Destroy(ctx, w.hostID, id, lives[id]); err != nil {
			w.s.log.Warn("VM could not be ended; will be tried again", "sandbox_id", id, "host_id", w.hostID, "error", err)
		}
	}
	w.strangers = strangers
	return nil
}
