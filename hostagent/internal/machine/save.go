package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of the steps while a guest stands still.
const (
	syncTime = 5 * time.Second
	stopTime = 60 * time.Second
)

// Saved is a snapshot that was made, and what it cost.
type Saved struct {
	Manifest Manifest
	Stats    SaveStats
	// Copies are the ids of a fork's copies.
	Copies []string
}

// SnapshotRequest describes the snapshot to make.
type SnapshotRequest struct {
	ID     string
	Kind   SnapshotKind
	Name   string
	Labels map[string]string
}

// Snapshot saves a running sandbox, which goes on. Asked again with the same id it answers as it did.
func (m *Machine) Snapshot(ctx context.Context, r SnapshotRequest) (Saved, error) {
	if !validID.MatchString(r.ID) {
		return Saved{}, &FieldError{"snapshot_id", fmt.Sprintf("must be letters, digits and underscores, at most 64, got %q", r.ID)}
	}
	result, err := m.do(ctx, "snapshot", r.ID, func() (any, bool, error) {
		if s, ok := m.saved[r.ID]; ok {
			return s, true, nil
		}
		if m.status.State != Running {
			return nil, false, m.illegal("snapshot", Running)
		}
		return nil, false, nil
	}, func(ctx context.Context) (any, error) { return m.snapshot(ctx, r) })
	saved, _ := result.(Saved)
	return saved, err
}

func (m *Machine) snapshot(ctx context.Context, r SnapshotRequest) (saved Saved, err error) {
	ctx, span := m.host.span(ctx, "hostagent.snapshot", m.spec.ID)
	defer func() { span.end(err) }()
	if slices.Contains(m.host.parts.Snapshots.Local(), r.ID) {
		return m.madeBefore(ctx, r.ID)
	}
	began := time.Now()
	draft, stopped, dirty, err := m.capture(ctx, r, true)
	if err != nil {
		return Saved{}, err
	}
	end := m.host.phaseSpan(ctx, "commit")
	saved.Manifest, saved.Stats, err = draft.Commit(ctx)
	end()
	if err != nil {
		return Saved{}, errors.Join(fmt.Errorf("snapshot %s: %w", r.ID, err), abort(ctx, draft))
	}
	saved.Stats.Stopped, saved.Stats.Total, saved.Stats.MemoryDirty = stopped, time.Since(began), dirty
	if err := m.host.register(ctx, saved.Manifest); err != nil {
		return Saved{}, errors.Join(err, m.host.parts.Snapshots.Remove(context.WithoutCancel(ctx), r.ID))
	}
	m.mu.Lock()
	m.saved[r.ID] = saved
	m.mu.Unlock()
	m.log.Info("snapshot made", "snapshot_id", r.ID, "kind", r.Kind, "stats", saved.Stats)
	return saved, nil
}

// madeBefore answers for a snapshot that was made for a caller whom the answer did not reach, by a former agent.
func (m *Machine) madeBefore(ctx context.Context, id string) (Saved, error) {
	base, err := m.host.parts.Snapshots.Open(ctx, id)
	if err != nil {
		return Saved{}, fmt.Errorf("snapshot %s: %w", id, err)
	}
	defer base.Release()
	man := base.Manifest()
	if man.SourceSandboxID != m.spec.ID {
		return Saved{}, &FieldError{"snapshot_id", fmt.Sprintf("%s is a snapshot of another sandbox, %s", id, man.SourceSandboxID)}
	}
	return Saved{Manifest: man}, m.host.register(ctx, man)
}

// capture holds on to the VM's state, memory and disk of one instant. With goOn the VM runs again when it returns, else only if
// it failed. The draft is the caller's to commit or abort.
func (m *Machine) capture(ctx context.Context, r SnapshotRequest, goOn bool) (_ Draft, stopped time.Duration, dirty int64, err error) {
	hold := m.hold
	draft, err := m.host.parts.Snapshots.Draft(ctx, m.manifest(r), hold.mem, hold.disk)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("snapshot %s: %w", r.ID, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("snapshot %s: %w", r.ID, err), abort(ctx, draft))
		}
	}()
	m.syncGuest(ctx, hold)
	if err = context.Cause(ctx); err != nil {
		return nil, 0, 0, err
	}
	began := time.Now()
	dirty, err = m.captureStopped(ctx, hold, draft)
	if goOn || err != nil {
		// Whatever happened and whoever has gone away: the guest must not be left standing.
		e := bounded(context.WithoutCancel(ctx), hold.vm.Cont)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("setting the VM going again: %w", e))
		}
	}
	return draft, time.Since(began), dirty, err
}

func (m *Machine) captureStopped(ctx context.Context, hold *holdings, draft Draft) (dirty int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"stop", func() error { return hold.vm.Stop(ctx) }},
		{"state", func() error { return hold.vm.SaveState(ctx, draft.StatePath()) }},
		{"memory", func() error { dirty, err = hold.vm.SaveDirty(ctx, draft); return err }},
		{"disk", func() error { return draft.TakeDisk(ctx) }},
	} {
		end := m.host.phaseSpan(ctx, step.name)
		err := step.do()
		end()
		if err != nil {
			return dirty, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return dirty, nil
}

// syncGuest has the guest write its page cache, so that the snapshot's disk is worth something without its memory. A guest
// that does not answer is saved as it is: its memory has what its disk lacks.
func (m *Machine) syncGuest(ctx context.Context, hold *holdings) {
	ctx, cancel := context.WithTimeout(ctx, syncTime)
	defer cancel()
	end := m.host.phaseSpan(ctx, "sync")
	defer end()
	ctx, stop := whileAlive(ctx, hold)
	defer stop()
	if err := hold.guest.Sync(ctx); err != nil {
		m.log.Warn("guest did not sync before the snapshot", "error", err)
	}
}

func abort(ctx context.Context, d Draft) error {
	return bounded(context.WithoutCancel(ctx), d.Abort)
}

// manifest describes a snapshot of this machine that is to be made.
func (m *Machine) manifest(r SnapshotRequest) Manifest {
	base := m.hold.base.Manifest()
	caps, cpu := m.host.parts.Driver.Capabilities(), m.hold.vm.CPU()
	man := Manifest{
		ID: r.ID, Kind: r.Kind, Name: r.Name, Labels: r.Labels, Tenant: m.spec.Tenant,
		Driver: caps.Driver, Version: caps.Version, Machine: cpu.Machine, Accel: string(caps.Accel), CPUFeatures: cpu.Features, VCPUs: m.spec.VCPUs,
		MemoryBytes: m.spec.MemoryBytes(), DiskBytes: m.spec.DiskBytes(), KernelID: m.host.conf.KernelID,
		Image: base.Image, ImageID: base.ImageID, SourceSandboxID: m.spec.ID, CreateTime: time.Now(),
	}
	if m.hold.base.StatePath() != "" {
		man.ParentID, man.Generation = base.ID, base.Generation+1
		if m.hold.memoryFrom {
			man.KernelID = base.KernelID
		}
	}
	return man
}

// Pause saves the sandbox and ends its VM. It returns once the snapshot is safe on this host's disk and everything else is
// freed. A pause that fails leaves the sandbox RUNNING. Asked again with the same id it answers as it did.
func (m *Machine) Pause(ctx context.Context, snapshotID string) (Status, SaveStats, error) {
	return m.pause(ctx, snapshotID, "", nil)
}

// pause is Pause with a reason, where the host pauses by itself: then still must hold when it begins.
func (m *Machine) pause(ctx context.Context, snapshotID, reason string, still func() bool) (Status, SaveStats, error) {
	if !validID.MatchString(snapshotID) {
		return Status{}, SaveStats{}, &FieldError{"snapshot_id", fmt.Sprintf("must be letters, digits and underscores, at most 64, got %q", snapshotID)}
	}
	result, err := m.do(ctx, "pause", snapshotID, func() (any, bool, error) {
		switch {
		case m.status.State == Paused && m.status.SnapshotID == snapshotID:
			return m.saved[snapshotID].Stats, true, nil
		case m.status.State != Running:
			return nil, false, m.illegal("pause", Running)
		case still != nil && !still():
			return SaveStats{}, true, nil
		}
		return nil, false, nil
	}, func(ctx context.Context) (any, error) { return m.pauseNow(ctx, snapshotID, reason) })
	stats, _ := result.(SaveStats)
	return m.Status(), stats, err
}

func (m *Machine) pauseNow(ctx context.Context, snapshotID, reason string) (stats SaveStats, err error) {
	ctx, span := m.host.span(ctx, "hostagent.pause", m.spec.ID)
	defer func() { span.end(err) }()
	began := time.Now()
	auto := reason != ""
	m.become(Pausing, func(s *Status) { s.Reason, s.SnapshotID, s.AutoPaused = reason, snapshotID, auto })
	m.journal()
	defer func() {
		if err != nil {
			// A part may answer with the context's end alone.
			m.unpause(ctx, errors.Join(err, context.Cause(ctx)))
		}
	}()
	draft, stopped, dirty, err := m.capture(ctx, SnapshotRequest{ID: snapshotID, Kind: PauseSnapshot}, false)
	if err != nil {
		return stats, err
	}
	end := m.host.phaseSpan(ctx, "commit")
	man, stats, err := draft.Commit(ctx)
	end()
	if err != nil {
		cont := bounded(context.WithoutCancel(ctx), m.hold.vm.Cont)
		return stats, errors.Join(fmt.Errorf("snapshot %s: %w", snapshotID, err), abort(ctx, draft), cont)
	}
	// From here on the sandbox is its snapshot, and nothing can fail any more.
	stats.Stopped, stats.MemoryDirty = stopped, dirty
	if err := m.host.register(ctx, man); err != nil {
		m.log.Warn("snapshot is not registered yet", "snapshot_id", snapshotID, "error", err)
	}
	m.journalAs(Paused)
	end = m.host.phaseSpan(ctx, "free")
	m.free(ctx, false)
	end()
	stats.Total = time.Since(began)
	m.mu.Lock()
	m.saved[snapshotID] = Saved{Manifest: man, Stats: stats}
	m.mu.Unlock()
	m.become(Paused, func(s *Status) { s.Reason, s.PID = reason, 0 })
	m.log.Info("sandbox paused", "snapshot_id", snapshotID, "reason", reason, "stats", stats)
	return stats, nil
}

// unpause makes the machine RUNNING again after a pause that failed. If the VM has died, its watcher goes on from here.
func (m *Machine) unpause(ctx context.Context, cause error) {
	m.log.Warn("pause failed", "error", cause)
	if errors.Is(cause, ErrDestroyed) || errors.Is(cause, ErrVMDied) {
		return
	}
	m.become(Running, func(s *Status) { s.SnapshotID, s.AutoPaused = "", false })
	m.journal()
}

// Fork saves the sandbox and starts copies of it. All of them run, or none is left.
func (m *Machine) Fork(ctx context.Context, snapshotID string, copies []string) ([]Status, SaveStats, error) {
	if err := checkFork(m.spec.ID, snapshotID, copies); err != nil {
		return nil, SaveStats{}, err
	}
	result, err := m.do(ctx, "fork", snapshotID+" "+strings.Join(copies, " "), func() (any, bool, error) {
		if s, ok := m.saved[snapshotID]; ok && slices.Equal(s.Copies, copies) {
			return s, true, nil
		}
		if m.status.State != Running {
			return nil, false, m.illegal("fork", Running)
		}
		return nil, false, nil
	}, func(ctx context.Context) (any, error) { return m.fork(ctx, snapshotID, copies) })
	saved, _ := result.(Saved)
	if err != nil {
		return nil, saved.Stats, err
	}
	var list []Status
	for _, id := range copies {
		c, err := m.host.Find(id)
		if err != nil {
			return nil, saved.Stats, err
		}
		list = append(list, c.Status())
	}
	return list, saved.Stats, nil
}

func checkFork(source, snapshotID string, copies []string) error {
	if !validID.MatchString(snapshotID) {
		return &FieldError{"snapshot_id", fmt.Sprintf("must be letters, digits and underscores, at most 64, got %q", snapshotID)}
	}
	if len(copies) < 1 || len(copies) > maxCopies {
		return &FieldError{"copy_ids", fmt.Sprintf("must be 1 to %d ids, got %d", maxCopies, len(copies))}
	}
	for i, id := range copies {
		if !validID.MatchString(id) || id == source || slices.Contains(copies[:i], id) {
			return &FieldError{"copy_ids", fmt.Sprintf("must be new ids, each once, got %q", id)}
		}
	}
	return nil
}

// maxCopies bounds one fork.
const maxCopies = 64

func (m *Machine) fork(ctx context.Context, snapshotID string, copies []string) (saved Saved, err error) {
	ctx, span := m.host.span(ctx, "hostagent.fork", m.spec.ID)
	defer func() { span.end(err) }()
	admitted, err := m.host.admitCopies(m.spec, snapshotID, copies)
	if err != nil {
		return Saved{}, err
	}
	saved, err = m.snapshot(ctx, SnapshotRequest{ID: snapshotID, Kind: ForkSnapshot})
	if err != nil {
		m.host.dismiss(admitted)
		return Saved{}, err
	}
	if err := m.host.startCopies(ctx, admitted); err != nil {
		return Saved{}, errors.Join(err, m.host.parts.Snapshots.Remove(context.WithoutCancel(ctx), snapshotID))
	}
	saved.Copies = slices.Clone(copies)
	m.mu.Lock()
	m.saved[snapshotID] = saved
	m.mu.Unlock()
	return saved, nil
}
