package machine

import "context"

// watch waits for the VM to die and then ends the machine as FAILED. It is one goroutine for each set of holdings.
func (m *Machine) watch(hold *holdings) {
	select {
	case <-hold.quit:
		return
	case <-m.host.quit:
		return
	case <-hold.vm.Done():
	case <-hold.mem.Failed():
	}
	// Both may be ready where the VM was ended on purpose.
	select {
	case <-hold.quit:
		return
	default:
	}
	var reason string
	select {
	case <-hold.mem.Failed():
		reason = "its memory cannot be served: " + hold.mem.Err().Error()
	default:
		reason = hold.vm.Exit().Reason
	}
	if err := m.end(context.Background(), hold, Failed, reason, ErrVMDied); err != nil {
		m.log.Warn("death of the VM not followed up; the next agent will", "reason", reason, "error", err)
	}
}

// Destroy ends the sandbox and frees all it held. What is under way is given up. Destroying a tombstone forgets it.
func (m *Machine) Destroy(ctx context.Context, reason string) error {
	return m.end(ctx, nil, Stopped, reason, ErrDestroyed)
}

// end takes the machine to a final state. It gives up what is under way, with cause, and waits for its end first. If only is set
// nothing happens unless the machine still has those holdings.
func (m *Machine) end(ctx context.Context, only *holdings, final State, reason string, cause error) error {
	for {
		m.mu.Lock()
		if only != nil && m.hold != only {
			m.mu.Unlock()
			return nil
		}
		j := m.job
		if j == nil {
			break
		}
		m.mu.Unlock()
		if j.op != "destroy" {
			j.cancel(cause)
		}
		if err := j.finished(ctx); err != nil {
			return err
		}
	}
	ended := m.hold == nil && !m.status.State.Held()
	j, err := m.launch(ctx, "destroy", "", func(ctx context.Context) (any, error) {
		if ended {
			m.host.forget(m)
		} else {
			m.endNow(ctx, final, reason)
		}
		return nil, nil
	})
	m.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = j.wait(ctx)
	return err
}

func (m *Machine) endNow(ctx context.Context, final State, reason string) {
	ctx, span := m.host.span(ctx, "hostagent.destroy", m.spec.ID)
	defer func() { span.end(nil) }()
	m.become(Stopping, func(s *Status) { s.Reason = reason })
	if final == Stopped {
		m.journal()
	}
	m.free(ctx, final == Failed)
	m.become(final, func(s *Status) { s.Reason, s.PID, s.SnapshotID, s.AutoPaused = reason, 0, "", false })
	if final == Failed {
		m.log.Warn("sandbox failed", "reason", reason)
	} else {
		m.log.Info("sandbox ended", "reason", reason)
	}
	if final == Stopped && reason == "" {
		m.host.forget(m)
		return
	}
	m.journal()
}

// free undoes all that the machine holds and gives its room back. What cannot be undone is logged, and found by the next
// start's sweep: there is nobody else whom it could be told.
func (m *Machine) free(ctx context.Context, keepConsole bool) {
	m.mu.Lock()
	hold := m.hold
	m.hold = nil
	if hold != nil && hold.mem != nil {
		m.receipt.PageSources = hold.mem.Sources() // the last there will be
	}
	m.mu.Unlock()
	if hold != nil {
		if keepConsole {
			hold.undo.drop(undoConsole)
		}
		close(hold.quit)
		if err := hold.undo.run(ctx); err != nil {
			m.log.Error("not all of the sandbox could be freed; the next start of the agent will", "error", err)
		}
	}
	m.giveRoom()
}

// Names of steps that are not always undone.
const (
	undoConsole = "console"
	undoJournal = "journal"
)

func (m *Machine) giveRoom() {
	m.mu.Lock()
	taken := m.roomTaken
	m.roomTaken = false
	m.mu.Unlock()
	if taken {
		m.host.ledger.Give(m.spec.room())
		m.host.changed()
	}
}

// record is the machine's journal record; h is what it has, or is about to have.
func (m *Machine) record(h *holdings) Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Record{Status: m.statusLocked(), Receipt: m.receipt.clone()}
	if h == nil {
		return r
	}
	r.MemoryFrom = h.memoryFrom
	r.Base, r.BaseIsImage = h.base.Manifest().ID, h.base.StatePath() == ""
	if r.BaseIsImage {
		r.Base = h.base.Manifest().ImageID // Not its name, which may be another image's by then.
	}
	if h.slot != nil {
		r.Slot = h.slot.ID()
	}
	if h.vm != nil {
		handle, cpu := h.vm.Handle(), h.vm.CPU()
		r.VM, r.CPU = &handle, &cpu
	}
	return r
}

// note writes down what the machine has, or is about to have.
func (m *Machine) note(h *holdings) error {
	if m.private {
		return nil
	}
	return m.host.journal.Put(m.spec.ID, m.record(h))
}

// journal writes the machine's record as it is now. A record that cannot be written costs a later agent the sandbox, which is no
// reason to end it now.
func (m *Machine) journal() {
	m.mu.Lock()
	hold := m.hold
	m.mu.Unlock()
	m.mustNote(m.record(hold))
}

// journalAs writes a record of the machine as it will be when it has nothing any more, before that is so.
func (m *Machine) journalAs(s State) {
	rec := m.record(nil)
	rec.Status.State, rec.Status.PID = s, 0
	m.mustNote(rec)
}

func (m *Machine) mustNote(rec Record) {
	if m.private {
		return
	}
	if err := m.host.journal.Put(m.spec.ID, rec); err != nil {
		m.log.Error("journal could not be written; a restart of the agent would lose the sandbox", "error", err)
	}
}
