package sandbox

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// State is where a sandbox is in its life.
type State string

// States. PENDING, STARTING, PAUSING, RESUMING and STOPPING always have work under way; STOPPED and FAILED are final.
const (
	Pending  State = "PENDING"
	Starting State = "STARTING"
	Running  State = "RUNNING"
	Pausing  State = "PAUSING"
	Paused   State = "PAUSED"
	Resuming State = "RESUMING"
	Stopping State = "STOPPING"
	Stopped  State = "STOPPED"
	Failed   State = "FAILED"
)

// States lists all states.
var States = []State{Pending, Starting, Running, Pausing, Paused, Resuming, Stopping, Stopped, Failed}

// next are the legal transitions. A running sandbox is found PAUSED, STOPPED or FAILED where its host did that by
// itself: the inactivity timer, the end of its lifetime, the death of its VM.
var next = map[State][]State{
	Pending:  {Starting, Stopping, Failed},
	Starting: {Running, Stopping, Failed},
	Running:  {Pausing, Paused, Stopping, Stopped, Failed},
	Pausing:  {Paused, Running, Stopping, Stopped, Failed},
	Paused:   {Resuming, Stopping},
	Resuming: {Running, Paused, Stopping, Failed},
	Stopping: {Stopped},
}

// Final tells whether a sandbox in this state is gone.
func (s State) Final() bool { return s == Stopped || s == Failed }

// Working tells whether a sandbox in this state has work under way that will take it out of it.
func (s State) Working() bool {
	switch s {
	case Pending, Starting, Pausing, Resuming, Stopping:
		return true
	}
	return false
}

// CanBecome tells whether a sandbox may go from s to another state.
func (s State) CanBecome(to State) bool { return slices.Contains(next[s], to) }

// Op is what a user can ask of a sandbox.
type Op string

// Operations.
const (
	OpCreate   Op = "create"
	OpDelete   Op = "delete"
	OpPause    Op = "pause"
	OpResume   Op = "resume"
	OpPing     Op = "ping"
	OpFork     Op = "fork"
	OpSnapshot Op = "snapshot"
	// OpDrain is a pause, and the resume after it, that emptying a host needs; users ask for it of hosts and not of sandboxes.
	OpDrain Op = "drain"
)

// Legal lists what may be asked of a sandbox in this state.
func (s State) Legal() []Op {
	switch s {
	case Running:
		return []Op{OpPause, OpFork, OpSnapshot, OpPing, OpDelete}
	case Paused:
		return []Op{OpResume, OpFork, OpSnapshot, OpDelete}
	}
	return []Op{OpDelete}
}

// StartKind is how a sandbox is started.
type StartKind string

// Kinds of start.
const (
	ColdBoot StartKind = "cold-boot"
	Spawn    StartKind = "spawn"
	Resume   StartKind = "resume"
	Fork     StartKind = "fork"
)

// RestorePolicy says what to do where saved memory cannot be restored.
type RestorePolicy string

// Restore policies; the empty one means MemoryRequired.
const (
	MemoryRequired RestorePolicy = "memory-required"
	PreferMemory   RestorePolicy = "prefer-memory"
	DiskOnly       RestorePolicy = "disk-only"
)

// Env is the environment of a sandbox's commands. It may hold secrets, so logs show only its names.
type Env map[string]string

// LogValue names the variables without their values.
func (e Env) LogValue() slog.Value {
	names := make([]string, 0, len(e))
	for k := range e {
		names = append(names, k)
	}
	slices.Sort(names)
	return slog.StringValue(strings.Join(names, ","))
}

// Network says what a sandbox may reach.
type Network struct {
	// Disabled: nothing beyond the guest.
	Disabled bool `json:",omitempty"`
	// AllowCIDRs and DenyCIDRs are IPv4 ranges; denials win.
	AllowCIDRs []string `json:",omitempty"`
	DenyCIDRs  []string `json:",omitempty"`
}

// Spec is what a sandbox was made with; it never changes.
type Spec struct {
	// Template is the name or id that was asked for.
	Template string
	// Image is the stock image it starts from; else SnapshotID is set.
	Image string `json:",omitempty"`
	// SnapshotID is the snapshot that its first life starts from.
	SnapshotID string `json:",omitempty"`
	Kind       StartKind
	// ParentID is the sandbox that it was forked from.
	ParentID string `json:",omitempty"`
	VCPUs    uint32
	// MemoryMB and DiskMB are MiB.
	MemoryMB uint32
	DiskMB   uint32
	// TimeoutSec is the inactivity after which the host pauses it; 0 means never.
	TimeoutSec uint32 `json:",omitempty"`
	// MaxLifetimeSec after its creation it is destroyed; 0 means never.
	MaxLifetimeSec uint32            `json:",omitempty"`
	Env            Env               `json:",omitempty"`
	Network        Network           `json:",omitzero"`
	AutoResume     bool              `json:",omitempty"`
	RestorePolicy  RestorePolicy     `json:",omitempty"`
	HostLabels     map[string]string `json:",omitempty"`
	// AntiAffinity is a name: no two sandboxes of the tenant with the same run on one host. Copies made by forks have none.
	AntiAffinity string `json:",omitempty"`
	// Needs are what the snapshot needs of a host.
	Needs
}

// Work is what is needed to continue the work under way on a row. After its end its ID stays, so that who waited for it
// can tell that the row's WorkError is of this work.
type Work struct {
	// ID is the same for all rows of one fork.
	ID string `json:"-"`
	Op Op     `json:",omitempty"`
	// RequestID names the request to be answered; may be empty.
	RequestID string `json:",omitempty"`
	// SnapshotID is the snapshot being made, by a pause or a fork.
	SnapshotID string `json:",omitempty"`
	// RestoreID names the start.
	RestoreID string `json:",omitempty"`
	// Life names the life that the sandbox lives, or lived last: it is the RestoreID of the start that began it. It stays with the row
	// whatever work comes and goes, and commands to the host name it. Empty where that is not known, as in rows of former releases: then
	// commands are for whichever life there is.
	Life string `json:",omitempty"`
	// SourceLife is the Life that a fork copies.
	SourceLife string `json:",omitempty"`
	// RestorePolicy and PinHostID are those of a resume.
	RestorePolicy RestorePolicy `json:",omitempty"`
	PinHostID     string        `json:",omitempty"`
	// Until is when whoever asked for a resume waits no longer for the snapshot to be durable; zero: as long as the service does.
	Until time.Time `json:",omitzero"`
	// Placed tells that HostID of the row is the host chosen for this start.
	Placed        bool   `json:",omitempty"`
	ReservationID string `json:",omitempty"`
	// Refused are the hosts that would not take it.
	Refused []string `json:",omitempty"`
	// HomeHostID is the host that a resuming sandbox was paused on.
	HomeHostID string `json:",omitempty"`
	// Saved tells that a sandbox being stopped was paused and has no VM.
	Saved bool `json:",omitempty"`
	// Reason is why a sandbox is being stopped, where no user asked for it.
	Reason string `json:",omitempty"`
}

// Sandbox is a microVM with its disk, network and identity, as the database has it.
type Sandbox struct {
	ID, Tenant string
	State      State
	// Reason says why it is STOPPED or FAILED, or PAUSED without anybody's asking.
	Reason string
	Spec
	Metadata map[string]string
	// HostID is the host that it runs on, is being started on, or ran on last.
	HostID string
	// SnapshotID is the saved state of a paused one.
	SnapshotID string
	// BaseSnapshotID is the former pause snapshot, and SourceSnapshotID the template's or fork's, from which a live one
	// may still read.
	BaseSnapshotID, SourceSnapshotID string
	// Durable: the pause snapshot no longer depends on its host.
	Durable bool
	// Version grows by one with every change.
	Version                               int64
	CreateTime, StateTime, LastActiveTime time.Time
	// ExpireTime is zero where it may live for ever.
	ExpireTime time.Time
	Work       Work
	// WorkError is how the last work failed; nil where it did not.
	WorkError *Error
	// LeaseOwner is the replica that works on it; empty where none does.
	LeaseOwner string
}

// become moves the sandbox to a state. An illegal move is a fault of ours and not of a caller.
func (s *Sandbox) become(to State) error {
	if s.State != to && !s.State.CanBecome(to) {
		return &Error{Kind: Internal, Reason: "ILLEGAL_TRANSITION", Message: fmt.Sprintf("sandbox %s cannot go from %s to %s", s.ID, s.State, to)}
	}
	s.State = to
	return nil
}

// end moves the sandbox to a final state, in which it names no snapshot any more.
func (s *Sandbox) end(to State, reason string) error {
	s.Reason = reason
	s.SnapshotID, s.BaseSnapshotID, s.SourceSnapshotID, s.Durable = "", "", "", false
	return s.become(to)
}

// begin gives the sandbox work.
func (s *Sandbox) begin(to State, w Work, owner string) error {
	w.Life = s.Work.Life
	s.Work, s.WorkError, s.LeaseOwner, s.Reason = w, nil, owner, ""
	return s.become(to)
}

// live makes the sandbox RUNNING, in the life that the start restoreID began.
func (s *Sandbox) live(restoreID string) error {
	s.Work.Life = restoreID
	return s.become(Running)
}

// finish takes the work away; err is how it failed, or nil.
func (s *Sandbox) finish(err *Error) {
	s.Work = Work{ID: s.Work.ID, Op: s.Work.Op, Life: s.Work.Life}
	s.WorkError, s.LeaseOwner = err, ""
}

// illegal is the answer to an operation that the sandbox's state forbids.
func (s *Sandbox) illegal(op Op, needs ...State) *Error {
	need := make([]string, len(needs))
	for i, n := range needs {
		need[i] = string(n)
	}
	legal := make([]string, 0, 5)
	for _, l := range s.State.Legal() {
		legal = append(legal, string(l))
	}
	return &Error{
		Kind: Precondition, Reason: "ILLEGAL_STATE",
		Message: fmt.Sprintf("sandbox %s is %s; %s needs it %s; legal now: %s", s.ID, s.State, op, strings.Join(need, " or "), strings.Join(legal, ", ")),
		Meta:    map[string]string{"sandbox_id": s.ID, "state": string(s.State), "legal": strings.Join(legal, ",")},
	}
}
