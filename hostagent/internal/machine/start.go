package machine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// Started is a running sandbox and how it was started.
type Started struct {
	Status  Status
	Receipt Receipt
}

// source is what one start begins with.
type source struct {
	base Base
	// memory tells that memory and device state come from base, a snapshot; otherwise the kernel is booted.
	memory bool
	kind   Kind
	// fallback is why memory is not restored though it was asked for.
	fallback string
}

// start takes an admitted machine to RUNNING. On an error nothing of it is left.
func (m *Machine) start(ctx context.Context, restoreID string) (_ Started, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.host.conf.StartTime)
	defer cancel()
	accepted := time.Now()
	ctx, span := m.host.span(ctx, "hostagent.start", m.spec.ID)
	defer func() { span.end(err) }()
	w := newStopwatch(func(name string) (context.Context, func()) { return m.host.phase(ctx, name) })

	w.phase("queue")
	leave, err := m.host.queue(ctx)
	if err != nil {
		return Started{}, err
	}
	defer leave()

	w.phase("source")
	src, err := m.host.source(w.within(ctx), m.spec)
	if err != nil {
		return Started{}, err
	}
	hold, att, err := m.assemble(ctx, w, src, restoreID)
	if restore := (*RestoreError)(nil); errors.As(err, &restore) && m.spec.Policy == PreferMemory && ctx.Err() == nil {
		m.log.Warn("memory cannot be restored; booting from the snapshot's disk", "error", err)
		w.phase("source")
		src, err = m.host.diskSource(ctx, m.spec, restore)
		if err == nil {
			hold, att, err = m.assemble(ctx, w, src, restoreID)
		}
	}
	if err != nil {
		return Started{}, err
	}
	r := Receipt{
		RestoreID: restoreID, SandboxID: m.spec.ID, Kind: src.kind, StartTime: accepted, Attestation: att, Fallback: src.fallback,
	}
	r.from(src)
	r.Phases, r.Total = w.stop()
	return m.run(hold, r), nil
}

func (r *Receipt) from(src source) {
	man := src.base.Manifest()
	if src.base.StatePath() == "" {
		return
	}
	r.SnapshotID, r.Generation, r.DiskBuilds = man.ID, man.Generation, man.DiskBuilds
	if src.memory {
		r.MemoryBuilds = man.MemoryBuilds
	}
}

// run makes an assembled machine RUNNING.
func (m *Machine) run(hold *holdings, r Receipt) Started {
	m.Touch()
	m.firstExec.Store(0)
	m.mu.Lock()
	m.hold, m.receipt = hold, r
	hold.undo.drop(undoJournal)
	m.mu.Unlock()
	m.become(Running, func(s *Status) { s.PID = hold.vm.Handle().PID })
	m.journal()
	m.host.spawn(func() { m.watch(hold) })
	m.log.Info("sandbox runs", "kind", r.Kind, "total", r.Total, "pid", hold.vm.Handle().PID, "phases", r.Phases)
	return Started{Status: m.Status(), Receipt: m.Receipt()}
}

// assemble makes all that the machine holds and has the guest answer. It takes over src.base. On an error all is undone.
func (m *Machine) assemble(ctx context.Context, w *stopwatch, src source, restoreID string) (_ *holdings, att Attestation, err error) {
	h := &holdings{base: src.base, memoryFrom: src.memory, quit: make(chan struct{})}
	h.undo.push("base", func(context.Context) error { src.base.Release(); return nil })
	defer func() {
		if err == nil {
			return
		}
		w.phase("undo")
		close(h.quit)
		if e := h.undo.run(ctx); e != nil {
			m.log.Error("a failed start could not be undone; the next start of the agent will", "error", e)
		}
	}()
	if err := m.furnish(ctx, w, h); err != nil {
		return nil, att, err
	}
	w.phase("vmm")
	defer m.traceFirstFault(w.within(ctx), h)()
	if err := m.startVM(w.within(ctx), h); err != nil {
		return nil, att, err
	}
	w.phase("guest")
	att, err = m.wake(w.within(ctx), h, src, restoreID)
	return h, att, err
}

// traceFirstFault has a span last from here until the VM asks for its first page, or until the returned function is called.
func (m *Machine) traceFirstFault(ctx context.Context, h *holdings) (stop func()) {
	end := m.host.phaseSpan(ctx, "first_fault")
	over := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case <-h.mem.Faulted():
		case <-over:
		}
		end()
	})
	return func() {
		close(over)
		waiting.Wait()
	}
}

// furnish makes everything that the VM needs before it is started, and notes in the journal that the machine may have it.
func (m *Machine) furnish(ctx context.Context, w *stopwatch, h *holdings) (err error) {
	p, id := m.host.parts, m.spec.ID
	w.phase("slot")
	if h.slot, err = p.Slots.Acquire(ctx, m.spec.Network); err != nil {
		return fmt.Errorf("network slot: %w", err)
	}
	h.undo.push("slot", h.slot.Release)

	w.phase("cage")
	dir := m.host.runDir(id)
	if err = os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	h.undo.push("run directory", func(context.Context) error { return os.RemoveAll(dir) })
	if h.cage, err = p.Cages.Make(ctx, id, m.spec.VCPUs, m.spec.MemoryBytes()); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	h.undo.push("cgroup", h.cage.Remove)

	w.phase("journal")
	if err = m.note(h); err != nil {
		return err
	}
	h.undo.push(undoJournal, func(context.Context) error { return m.host.journal.Remove(id) })

	w.phase("disk")
	if h.disk, err = p.Disks.Create(ctx, id, h.base, m.spec.DiskBytes(), m.host.diskSocket(id), h.cage.UID()); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	h.undo.push("disk", h.disk.Discard)

	w.phase("pager")
	var from Base
	if h.memoryFrom {
		from = h.base
	}
	if h.mem, err = p.Memories.Open(ctx, id, from, m.spec.MemoryBytes(), m.host.pagerSocket(id), h.cage.UID()); err != nil {
		return h.restoreError(fmt.Errorf("memory: %w", err))
	}
	h.undo.push("pager", h.mem.Close)
	return nil
}

// restoreError makes an error one that a policy may pass over, where memory was being restored.
func (h *holdings) restoreError(err error) error {
	if !h.memoryFrom || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &RestoreError{SnapshotID: h.base.Manifest().ID, Err: err}
}

func (m *Machine) vmConfig(h *holdings) vmm.Config {
	id := m.spec.ID
	return vmm.Config{
		ID: id, RunDir: m.host.runDir(id), VCPUs: m.spec.VCPUs, MemoryBytes: m.spec.MemoryBytes(),
		Kernel: m.host.conf.Kernel, Initrd: m.host.conf.Initrd, Cmdline: m.host.conf.Cmdline,
		Baseline: m.baseline, Memory: h.mem.File(), PagerSocket: h.mem.Socket(), DiskSocket: m.host.diskSocket(id),
		NetNS: h.slot.NetNS(), TapName: h.slot.TAP(), MAC: h.slot.MAC(), ConsolePath: m.host.ConsolePath(id),
		UID: h.cage.UID(), GID: h.cage.GID(), CgroupProcs: h.cage.Procs(),
	}
}

// startVM starts the VMM. The VM it leaves has its CPUs standing where memory was restored, and runs where it was booted.
func (m *Machine) startVM(ctx context.Context, h *holdings) (err error) {
	console := m.host.ConsolePath(m.spec.ID)
	h.undo.push(undoConsole, func(context.Context) error { return removeIfThere(console) })
	// A VMM that needs a page which cannot be served stands still, and does not answer.
	served, stop := whileAlive(ctx, h)
	defer stop()
	if h.memoryFrom {
		h.vm, err = m.host.parts.Driver.Restore(served, m.vmConfig(h), h.base.StatePath())
	} else {
		h.vm, err = m.host.parts.Driver.Boot(served, m.vmConfig(h))
	}
	if err != nil {
		return h.restoreError(fmt.Errorf("VMM: %w", truer(served, err)))
	}
	h.undo.push("VMM", h.vm.Kill)
	return m.note(h)
}

// wake sets the guest going and gives it its identity.
func (m *Machine) wake(ctx context.Context, h *holdings, src source, restoreID string) (att Attestation, err error) {
	if h.guest, err = m.host.parts.Guests.Dial(h.slot); err != nil {
		return att, fmt.Errorf("guestd: %w", err)
	}
	h.undo.push("guest connection", func(context.Context) error { return h.guest.Close() })
	ctx, stop := whileAlive(ctx, h)
	defer stop()
	if h.memoryFrom {
		if err := h.vm.Cont(ctx); err != nil {
			return att, h.restoreError(fmt.Errorf("VMM: %w", truer(ctx, err)))
		}
	}
	att, err = h.guest.AfterRestore(ctx, m.identity(src, restoreID))
	if err == nil {
		return att, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	err = fmt.Errorf("guestd did not answer: %w", err)
	if died := (*vmError)(nil); errors.As(err, &died) {
		return att, h.restoreError(err)
	}
	return att, err
}

// vmError is the end of a VM while something waited for its guest.
type vmError struct {
	reason string
	err    error
}

func (e *vmError) Error() string { return e.reason }
func (e *vmError) Unwrap() error { return e.err }

// truer is the end of the VM or of its memory where that ended a context of whileAlive, else err.
func truer(ctx context.Context, err error) error {
	if cause := (*vmError)(nil); errors.As(context.Cause(ctx), &cause) {
		return cause
	}
	return err
}

// whileAlive is a context that also ends, with the reason as its cause, when the VM does, if there is one yet, or when its memory cannot
// be served.
func whileAlive(ctx context.Context, h *holdings) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	var died <-chan struct{}
	vm := h.vm
	if vm != nil {
		died = vm.Done()
	}
	go func() {
		defer close(done)
		select {
		case <-died:
			cancel(&vmError{vm.Exit().Reason, ErrVMDied})
		case <-h.mem.Failed():
			cancel(&vmError{"memory cannot be served: " + h.mem.Err().Error(), h.mem.Err()})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

func (m *Machine) identity(src source, restoreID string) Identity {
	id := Identity{RestoreID: restoreID, SandboxID: m.spec.ID, Env: m.spec.Env, Nameservers: m.host.conf.Nameservers, Same: src.kind == Resume}
	if id.RestoreID == "" {
		id.RestoreID = newID("rst_")
	}
	if !id.Same {
		id.Hostname, id.MachineID = names(m.spec.ID)
	}
	return id
}

// names are what a sandbox's guest is called and its machine-id. They follow from the sandbox's id, so that it stays the same where it is booted
// from its saved disk, which does not have them, on whatever host; and a clone is another, as its id is.
func names(sandboxID string) (hostname, machineID string) {
	sum := sha256.Sum256([]byte("covey machine-id 1\n" + sandboxID))
	return strings.ToLower(strings.ReplaceAll(sandboxID, "_", "-")), hex.EncodeToString(sum[:16])
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// runDir is the directory of a machine's sockets.
func (h *Host) runDir(id string) string      { return filepath.Join(h.conf.RunDir, id) }
func (h *Host) diskSocket(id string) string  { return filepath.Join(h.runDir(id), "disk.sock") }
func (h *Host) pagerSocket(id string) string { return filepath.Join(h.runDir(id), "pager.sock") }

// ConsolePath is a sandbox's console log. It outlives a VM that died, until the tombstone is forgotten.
func (h *Host) ConsolePath(id string) string { return filepath.Join(h.conf.ConsoleDir, id+".log") }
