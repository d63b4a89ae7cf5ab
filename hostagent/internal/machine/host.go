package machine

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/journal"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// Config is what a host is told. Zero durations mean the defaults.
type Config struct {
	// ID is the host's id.
	ID string
	// RunDir has a directory of sockets for each machine; ConsoleDir the console logs; JournalDir the journal.
	RunDir, ConsoleDir, JournalDir string
	// SettingsDir keeps what the host was told from outside and that holds until it is told otherwise.
	SettingsDir string
	// Kernel and Initrd are files, Cmdline the kernel's parameters, KernelID the digest of both files.
	Kernel, Initrd, Cmdline, KernelID string
	// Nameservers are given to every guest.
	Nameservers []string
	// Capacity is what sandboxes may take in all, overcommit included.
	Capacity Room
	// Parallel is how many starts may be under way at once; others wait in line, so that no start starves all.
	Parallel int
	// StartTime bounds one start (3 min); Tombstone is how long an end is remembered (1 h); Tick is how often idle machines are
	// looked for (2 s).
	StartTime, Tombstone, Tick time.Duration
	// BusyCPU is the CPU use, in CPUs, above which a sandbox is not idle though nothing calls it. 0 means 0.2; negative: CPU use does
	// not count.
	BusyCPU float64
}

// defaultBusyCPU lies well above what an idle guest takes under emulation, and well below what a computing one does.
const defaultBusyCPU = 0.2

// Tracer makes spans. The domain does not care whose.
type Tracer interface {
	// Span begins a span; what is done within uses the context. end ends it, with the operation's error.
	Span(ctx context.Context, name string, attrs ...string) (_ context.Context, end func(error))
}

// Record is what the journal keeps of a machine.
type Record struct {
	Status  Status  `json:"status"`
	Receipt Receipt `json:"receipt"`
	// Base is the snapshot's id, or the image's, or of a record of a former release the image's name; MemoryFrom tells that memory came from it too.
	Base        string `json:"base,omitempty"`
	BaseIsImage bool   `json:"base_is_image,omitempty"`
	MemoryFrom  bool   `json:"memory_from,omitempty"`
	Slot        string `json:"slot,omitempty"`
	// VM is nil until the VMM has been started.
	VM *vmm.Handle `json:"vm,omitempty"`
	// CPU is the VM's processor; nil too in records of an agent that did not know it.
	CPU *vmm.CPU `json:"cpu,omitempty"`
}

// Host has all machines of one host.
type Host struct {
	conf    Config
	parts   Parts
	tracer  Tracer
	log     *slog.Logger
	journal *journal.Journal[Record]
	ledger  *Ledger
	hub     *hub
	// baseline bounds the processors of VMs that are booted.
	baseline *baselineKeeper
	// starts has a token for each start under way.
	starts chan struct{}
	// change has a token when what a heartbeat tells has changed; capacity 1, never closed.
	change chan struct{}

	// mu guards machines and templates. It is taken before a machine's own lock, never after.
	mu        sync.Mutex
	machines  map[string]*Machine
	templates map[string]*templateJob

	life    sync.Mutex // guards closing and wg.Add
	closing bool
	wg      sync.WaitGroup
	// quit ends the watchers when the agent goes down and leaves its VMs running.
	quit chan struct{}
}

// New makes a host without machines; TakeBack finds those that a former agent had.
func New(conf Config, parts Parts, tracer Tracer, log *slog.Logger) (*Host, error) {
	conf.StartTime = orDefault(conf.StartTime, 3*time.Minute)
	conf.Tombstone = orDefault(conf.Tombstone, time.Hour)
	conf.Tick = orDefault(conf.Tick, 2*time.Second)
	conf.Parallel = max(conf.Parallel, 1)
	if conf.BusyCPU == 0 {
		conf.BusyCPU = defaultBusyCPU
	}
	for dir, mode := range map[string]os.FileMode{conf.RunDir: 0o711, conf.ConsoleDir: 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, err
		}
		// VMMs of other users must be able to pass, whatever the umask was.
		if err := os.Chmod(dir, mode); err != nil {
			return nil, err
		}
	}
	j, err := journal.Open[Record](conf.JournalDir)
	if err != nil {
		return nil, err
	}
	baseline, err := openBaseline(conf.SettingsDir)
	if err != nil {
		return nil, err
	}
	return &Host{
		conf: conf, baseline: baseline, parts: parts, tracer: tracer, log: log, journal: j, ledger: NewLedger(conf.Capacity), hub: newHub(),
		starts: make(chan struct{}, conf.Parallel), change: make(chan struct{}, 1),
		machines: map[string]*Machine{}, templates: map[string]*templateJob{}, quit: make(chan struct{}),
	}, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Start starts a sandbox and returns once its guest has answered. The same start (by restoreID) joins the one under way, or
// answers as it did.
func (h *Host) Start(ctx context.Context, spec Spec, restoreID string) (Started, error) {
	if err := spec.check(h.parts.Driver.Capabilities().MaxVCPUs); err != nil {
		return Started{}, err
	}
	for {
		j, answer, err := h.beginStart(ctx, spec, restoreID)
		if err != nil || answer != nil {
			return deref(answer), err
		}
		result, err := j.wait(ctx)
		if j.op == "start" && j.key == restoreID || ctx.Err() != nil {
			started, _ := result.(Started)
			return started, err
		}
	}
}

func deref(s *Started) Started {
	if s == nil {
		return Started{}
	}
	return *s
}

// beginStart begins a start, or finds the one under way, or the last work of a tombstone to wait for, or the answer.
func (h *Host) beginStart(ctx context.Context, spec Spec, restoreID string) (*job, *Started, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.machines[spec.ID]
	if old != nil {
		j, answer, err := old.standing(restoreID)
		if j != nil || answer != nil || err != nil {
			return j, answer, err
		}
	}
	if err := h.ledger.Take(spec.room()); err != nil {
		return nil, nil, err
	}
	m := h.newMachine(spec)
	j, err := h.launchStart(ctx, m, old, restoreID)
	return j, nil, err
}

// standing says what the machine that is there means for a start: nothing, if it is a tombstone.
func (m *Machine) standing(restoreID string) (*job, *Started, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.job != nil && m.job.op == "start" && m.job.key == restoreID && restoreID != "":
		return m.job, nil, nil
	case (m.status.State == Running || m.status.State == Paused) && m.receipt.RestoreID == restoreID && restoreID != "":
		// One that has been paused since, by its inactivity say, must not begin its life again: what it did would be lost.
		return nil, &Started{Status: m.statusLocked(), Receipt: m.receipt.clone()}, nil
	case m.status.State.Held():
		return nil, nil, m.illegal("start", Paused, Stopped, Failed)
	}
	return m.job, nil, nil
}

// launchStart puts a machine, whose room has been taken, into the table and starts it. It is called with h.mu held. A fork's copy, which was in
// the table before, may have been destroyed meanwhile, or just be: ErrDestroyed.
func (h *Host) launchStart(ctx context.Context, m, old *Machine, restoreID string) (*job, error) {
	m.mu.Lock()
	if m.job != nil || m.status.State != Starting {
		m.mu.Unlock()
		return nil, ErrDestroyed
	}
	m.roomTaken, m.status.RestoreID = true, restoreID
	j, err := m.launch(ctx, "start", restoreID, func(ctx context.Context) (any, error) {
		started, err := m.start(ctx, restoreID)
		if err != nil {
			h.startFailed(m, old, err)
		}
		return started, err
	})
	st := m.statusLocked()
	m.mu.Unlock()
	if err != nil {
		m.giveRoom()
		return nil, err
	}
	h.machines[m.spec.ID] = m
	h.tell(st)
	return j, nil
}

// startFailed leaves the host as if there had been no start: a tombstone that was there is there again.
func (h *Host) startFailed(m, old *Machine, cause error) {
	m.log.Warn("sandbox could not be started", "error", cause)
	m.become(Failed, func(s *Status) { s.Reason = "it could not be started: " + cause.Error() })
	m.giveRoom()
	h.mu.Lock()
	if h.machines[m.spec.ID] == m {
		delete(h.machines, m.spec.ID)
		if old != nil {
			h.machines[m.spec.ID] = old
		}
	}
	h.mu.Unlock()
	if old != nil {
		old.journal()
	}
}

// Find finds a machine, a tombstone included. *NotHereError.
func (h *Host) Find(id string) (*Machine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.machines[id]; m != nil {
		return m, nil
	}
	return nil, &NotHereError{ID: id}
}

// FindLife finds the machine of the sandbox's life that the start restoreID began, or with an empty restoreID of whichever there is.
// *NotHereError; *OtherLifeError where another is here: who asks may not know yet that it lives again.
func (h *Host) FindLife(id, restoreID string) (*Machine, error) {
	m, err := h.Find(id)
	if err != nil || restoreID == "" {
		return m, err
	}
	// A machine is of one start alone: if it is the right one now, it stays so.
	if st := m.Status(); st.RestoreID != restoreID {
		return nil, &OtherLifeError{ID: id, Asked: restoreID, Here: st.RestoreID, State: st.State}
	}
	return m, nil
}

// Destroy is Machine.Destroy of the sandbox's life that the start restoreID began, or with an empty restoreID of whichever there is. Where there
// is none, or another, nothing happens: who asks may not know yet that it lives again.
func (h *Host) Destroy(ctx context.Context, id, restoreID string) error {
	m, err := h.FindLife(id, restoreID)
	if err != nil {
		if other := (*OtherLifeError)(nil); errors.As(err, &other) {
			h.log.Info("another life of the sandbox was to be ended, which is not here", "sandbox_id", id, "restore_id", restoreID, "here", other.Here)
		}
		return nil
	}
	return m.Destroy(ctx, "")
}

// List is every machine, tombstones included.
func (h *Host) List() []Status {
	machines := h.all()
	list := make([]Status, len(machines))
	for i, m := range machines {
		list[i] = m.Status()
	}
	return list
}

func (h *Host) all() []*Machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*Machine, 0, len(h.machines))
	for _, m := range h.machines {
		list = append(list, m)
	}
	return list
}

// Watch subscribes to every change; buffer is how many may wait.
func (h *Host) Watch(buffer int) *Subscription { return h.hub.subscribe(max(buffer, 2)) }

// Ledger is the host's room.
func (h *Host) Ledger() *Ledger { return h.ledger }

// Changed has a token after what a heartbeat tells has changed.
func (h *Host) Changed() <-chan struct{} { return h.change }

// Capabilities are the driver's.
func (h *Host) Capabilities() vmm.Capabilities { return h.parts.Driver.Capabilities() }

// Snapshots are those that this host has.
func (h *Host) Snapshots() []string { return h.parts.Snapshots.Local() }

// RemoveSnapshot removes a snapshot from this host, at once or as soon as no machine uses it.
func (h *Host) RemoveSnapshot(ctx context.Context, id string) error {
	if !validID.MatchString(id) {
		return &FieldError{"snapshot_id", fmt.Sprintf("must be letters, digits and underscores, at most 64, got %q", id)}
	}
	return h.parts.Snapshots.Remove(ctx, id)
}

func (h *Host) changed() {
	select {
	case h.change <- struct{}{}:
	default:
	}
}

func (h *Host) tell(st Status) {
	h.hub.publish(st)
	h.changed()
}

// forget removes a tombstone with all that was kept for it. It is called by a job of the machine's: a start of the same sandbox waits for its end,
// as what it writes down has the same names.
func (h *Host) forget(m *Machine) {
	h.mu.Lock()
	mine := h.machines[m.spec.ID] == m
	h.mu.Unlock()
	if !mine {
		return
	}
	if err := errors.Join(h.journal.Remove(m.spec.ID), removeIfThere(h.ConsolePath(m.spec.ID))); err != nil {
		m.log.Warn("tombstone could not be removed", "error", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machines[m.spec.ID] == m {
		delete(h.machines, m.spec.ID)
	}
}

// queue waits for a place among the starts under way.
func (h *Host) queue(ctx context.Context) (leave func(), err error) {
	select {
	case h.starts <- struct{}{}:
		return func() { <-h.starts }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// register makes a snapshot known to the registry, if there is one.
func (h *Host) register(ctx context.Context, m Manifest) error {
	if h.parts.Registry == nil {
		return nil
	}
	return h.parts.Registry.Register(ctx, m)
}

// spawn runs fn in a goroutine that Close waits for; false where the host is closing.
func (h *Host) spawn(fn func()) bool {
	h.life.Lock()
	defer h.life.Unlock()
	if h.closing {
		return false
	}
	h.wg.Go(fn)
	return true
}

// Close takes nothing new and waits for what is under way. With destroy it ends every machine first; otherwise their VMs live on,
// for the next agent to take back.
func (h *Host) Close(ctx context.Context, destroy bool) error {
	var errs []error
	if destroy {
		errs = append(errs, h.destroyAll(ctx))
	}
	h.life.Lock()
	if !h.closing {
		h.closing = true
		close(h.quit)
	}
	h.life.Unlock()
	done := make(chan struct{})
	go func() {
		h.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		if destroy {
			h.endLate(ctx)
		}
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("operations are still under way: %w", context.Cause(ctx)))
	}
	for _, m := range h.all() {
		m.letGo()
	}
	return errors.Join(errs...)
}

func (h *Host) destroyAll(ctx context.Context) error {
	machines := h.all()
	errs := make([]error, len(machines))
	var wg sync.WaitGroup
	for i, m := range machines {
		wg.Go(func() { errs[i] = m.Destroy(ctx, "") })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// endLate ends what was started while the others were being destroyed. No operation is under way, nor will there be one.
func (h *Host) endLate(ctx context.Context) {
	for _, m := range h.all() {
		m.mu.Lock()
		held := m.hold != nil
		m.mu.Unlock()
		if held {
			m.endNow(ctx, Stopped, "")
		}
	}
}

// letGo closes what belongs to this process alone of a VM that lives on.
func (m *Machine) letGo() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hold != nil && m.hold.guest != nil {
		if err := m.hold.guest.Close(); err != nil {
			m.log.Warn("guest connection could not be closed", "error", err)
		}
	}
}

type span struct{ end func(error) }

func (h *Host) span(ctx context.Context, name, id string) (context.Context, span) {
	ctx, end := h.tracer.Span(ctx, name, "sandbox_id", id)
	return ctx, span{end}
}

func (h *Host) phaseSpan(ctx context.Context, name string) func() {
	_, end := h.phase(ctx, name)
	return end
}

// phase begins a span; what is done within uses the context.
func (h *Host) phase(ctx context.Context, name string) (context.Context, func()) {
	ctx, end := h.tracer.Span(ctx, "hostagent."+name)
	return ctx, func() { end(nil) }
}

// newID makes an id of 26 characters after a prefix, ordered by time like a ULID.
func newID(prefix string) string {
	var b [16]byte
	ms := uint64(time.Now().UnixMilli())
	for i := range 6 {
		b[i] = byte(ms >> (40 - 8*i))
	}
	rand.Read(b[6:])
	return prefix + idText(b)
}

var crockford = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

// idText writes 128 bits as a ULID is written: two zero bits first, then 26 characters of five.
func idText(b [16]byte) string {
	var padded [20]byte // 130 bits, moved to the end of 160; the first 6 characters are zeros and cut off
	copy(padded[4:], b[:])
	return crockford.EncodeToString(padded[:])[6:]
}
