package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/journal"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// Sweeper removes what a former agent left behind of one kind of thing.
type Sweeper struct {
	// Kind names it: "cgroups".
	Kind string
	// Sweep removes all but what belongs to the given sandboxes and slots, and says what it removed.
	Sweep func(ctx context.Context, keep Keep) (removed []string, err error)
}

// Keep is what is in use.
type Keep struct {
	// IDs are sandboxes, Slots network slots.
	IDs, Slots []string
}

// TakeBack finds the machines of a former agent: those whose VM lives on run again, of the others an end is told. Then the
// sweepers remove whatever belongs to none of them. It is called once, before Start.
func (h *Host) TakeBack(ctx context.Context, sweepers []Sweeper) error {
	entries, err := h.journal.Load()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	places := make(chan struct{}, h.conf.Parallel)
	for _, e := range entries {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			h.takeBackOne(ctx, e)
		})
	}
	wg.Wait()
	return h.sweep(ctx, sweepers)
}

func (h *Host) takeBackOne(ctx context.Context, e journal.Entry[Record]) {
	if e.Err != nil {
		h.log.Error("a sandbox's journal record cannot be read; the sandbox is ended", "sandbox_id", e.ID, "error", e.Err)
		if err := h.journal.Remove(e.ID); err != nil {
			h.log.Error("the record could not be removed", "sandbox_id", e.ID, "error", err)
		}
		return
	}
	rec := e.Record
	m := h.newMachine(rec.Status.Spec)
	m.status, m.receipt = rec.Status, rec.Receipt
	if m.status.RestoreID == "" {
		m.status.RestoreID = rec.Receipt.RestoreID // The record is of a former release.
	}
	m.lastActive.Store(rec.Status.LastActive.UnixNano())
	m.takenBack = time.Now()
	m.firstExec.Store(int64(rec.Receipt.FirstExec))
	h.mu.Lock()
	h.machines[m.spec.ID] = m
	h.mu.Unlock()
	switch {
	case !rec.Status.State.Held():
		return
	case rec.Status.State == Stopping:
		h.forget(m)
		return
	case rec.Status.State == Pausing && slices.Contains(h.parts.Snapshots.Local(), rec.Status.SnapshotID):
		m.buried(Paused, rec.Status.Reason, rec.Status.SnapshotID)
		return
	}
	if err := m.takeBack(ctx, e); err != nil {
		m.log.Warn("sandbox is lost", "error", err)
		m.buried(Failed, err.Error(), "")
	}
}

// buried makes a machine that has nothing any more a tombstone. What its VM may have left is swept.
func (m *Machine) buried(s State, reason, snapshotID string) {
	auto := m.status.AutoPaused
	m.become(s, func(st *Status) {
		st.Reason, st.SnapshotID, st.AutoPaused, st.PID = reason, snapshotID, auto && s == Paused, 0
	})
	m.journal()
}

// takeBack makes the machine RUNNING again. The error says how it was lost.
func (m *Machine) takeBack(ctx context.Context, e journal.Entry[Record]) error {
	rec := e.Record
	switch {
	case !e.SameBoot:
		return errors.New("the host was restarted")
	case rec.VM == nil:
		return errors.New("the host agent ended while it was being started")
	case rec.Status.State == Starting:
		return errors.New("the host agent ended while it was being started")
	case !alive(*rec.VM):
		return errors.New("the VMM ended while there was no host agent")
	}
	hold := &holdings{memoryFrom: rec.MemoryFrom, quit: make(chan struct{})}
	if err := m.reopen(ctx, hold, rec); err != nil {
		close(hold.quit)
		if e := hold.undo.run(ctx); e != nil {
			m.log.Error("what was reopened could not be freed", "error", e)
		}
		return fmt.Errorf("the next host agent could not take it back: %w", err)
	}
	h := m.host
	h.ledger.Force(m.spec.room())
	m.mu.Lock()
	m.hold, m.roomTaken = hold, true
	m.mu.Unlock()
	m.become(Running, func(s *Status) { s.PID, s.SnapshotID, s.AutoPaused = hold.vm.Handle().PID, "", false })
	m.journal()
	h.spawn(func() { m.watch(hold) })
	m.log.Info("sandbox taken back", "pid", hold.vm.Handle().PID)
	return nil
}

// reopen takes the holdings back in the order in which a VM that hangs needs them: its disk and its memory before its control
// socket, which it cannot answer while a fault or a read is unserved.
func (m *Machine) reopen(ctx context.Context, h *holdings, rec Record) (err error) {
	p, id, spec := m.host.parts, m.spec.ID, m.spec
	switch {
	case rec.BaseIsImage:
		h.base, err = p.Snapshots.OpenImage(ctx, rec.Base)
	case rec.MemoryFrom:
		h.base, err = p.Snapshots.Open(ctx, rec.Base)
	default:
		h.base, err = p.Snapshots.OpenDisk(ctx, rec.Base)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", rec.Base, err)
	}
	h.undo.push("base", func(context.Context) error { h.base.Release(); return nil })
	if h.slot, err = p.Slots.Adopt(ctx, rec.Slot, spec.Network); err != nil {
		return fmt.Errorf("network slot %s: %w", rec.Slot, err)
	}
	h.undo.push("slot", h.slot.Release)
	dir := m.host.runDir(id)
	h.undo.push("run directory", func(context.Context) error { return os.RemoveAll(dir) })
	if h.cage, err = p.Cages.Open(ctx, id, spec.VCPUs, spec.MemoryBytes()); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	h.undo.push("cgroup", h.cage.Remove)
	if h.disk, err = p.Disks.Reopen(ctx, id, h.base, spec.DiskBytes(), m.host.diskSocket(id), h.cage.UID()); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	h.undo.push("disk", h.disk.Discard)
	var from Base
	if h.memoryFrom {
		from = h.base
	}
	if h.mem, err = p.Memories.Reopen(ctx, id, from, spec.MemoryBytes(), m.host.pagerSocket(id), h.cage.UID(), rec.VM.PID); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	h.undo.push("pager", h.mem.Close)
	return m.reopenVM(ctx, h, rec)
}

func (m *Machine) reopenVM(ctx context.Context, h *holdings, rec Record) (err error) {
	console := m.host.ConsolePath(m.spec.ID)
	h.undo.push(undoConsole, func(context.Context) error { return removeIfThere(console) })
	conf := m.vmConfig(h)
	conf.CPU = rec.CPU
	if h.vm, err = m.host.parts.Driver.Reopen(ctx, conf, *rec.VM); err != nil {
		return fmt.Errorf("VMM: %w", err)
	}
	h.undo.push("VMM", h.vm.Kill)
	// The former agent may have died while it held the VM still for a snapshot.
	if err := h.vm.Cont(ctx); err != nil {
		return fmt.Errorf("VMM: %w", err)
	}
	if h.guest, err = m.host.parts.Guests.Dial(h.slot); err != nil {
		return fmt.Errorf("guestd: %w", err)
	}
	h.undo.push("guest connection", func(context.Context) error { return h.guest.Close() })
	return nil
}

// alive tells whether a VMM process still is the one that was started.
func alive(h vmm.Handle) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.PID))
	if err != nil {
		return false
	}
	// The name in brackets may have spaces and brackets of its own; what follows the last one has not.
	_, rest, ok := strings.Cut(string(stat[max(0, strings.LastIndexByte(string(stat), ')')):]), ")")
	fields := strings.Fields(rest)
	const state, startTime = 0, 19 // fields 3 and 22 of the file
	return ok && len(fields) > startTime && fields[state] != "Z" && fields[startTime] == fmt.Sprint(h.StartTime)
}

// sweep removes what belongs to no machine, and says so.
func (h *Host) sweep(ctx context.Context, sweepers []Sweeper) error {
	var keep Keep
	tombs := map[string]bool{}
	for _, m := range h.all() {
		m.mu.Lock()
		if m.hold != nil {
			keep.IDs = append(keep.IDs, m.spec.ID)
			keep.Slots = append(keep.Slots, m.hold.slot.ID())
		}
		m.mu.Unlock()
		tombs[m.spec.ID] = true
	}
	sweepers = append(slices.Clone(sweepers),
		Sweeper{"run directories", func(_ context.Context, keep Keep) ([]string, error) {
			return sweepDir(h.conf.RunDir, func(name string) bool { return slices.Contains(keep.IDs, name) })
		}},
		Sweeper{"console logs", func(context.Context, Keep) ([]string, error) {
			return sweepDir(h.conf.ConsoleDir, func(name string) bool { return tombs[strings.TrimSuffix(name, ".log")] })
		}})
	var errs []error
	for _, s := range sweepers {
		began := time.Now()
		removed, err := s.Sweep(ctx, keep)
		if err != nil {
			errs = append(errs, fmt.Errorf("sweeping %s: %w", s.Kind, err))
		}
		if len(removed) > 0 {
			h.log.Warn("removed what a former agent had left", "kind", s.Kind, "removed", removed, "took", time.Since(began))
		}
	}
	return errors.Join(errs...)
}

func sweepDir(dir string, keep func(string) bool) (removed []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if keep(e.Name()) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if e := os.RemoveAll(path); e != nil {
			err = errors.Join(err, e)
			continue
		}
		removed = append(removed, path)
	}
	return removed, err
}
