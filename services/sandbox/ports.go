package sandbox

import (
	"context"
	"time"
)

// Change is one atomic step of the store. Either all of it happens or nothing.
type Change struct {
	// Claim is what it takes of a tenant's quota; an Exhausted error where that is too much. Where the request was seen before
	// nothing is taken.
	Claim *Claim
	// Begin records a request. Where it is there already, nothing happens and Apply returns a *Seen error.
	Begin *Request
	// Require are rows that must have their version still.
	Require []Sandbox
	// Apart: no updated row may share its host with another of its anti-affinity; ErrCrowded where one would. Of several at the same moment one
	// is first.
	Apart bool
	// Insert are new rows; Update are rows compared on their version and set. ErrConflict where one is not as given.
	Insert, Update []Sandbox
	// Since is when rows, by id, came into the state they are updated to, where a host did that and not this change. What a sandbox used is
	// counted by it.
	Since map[string]time.Time
	// Receipts are how sandboxes were started, by id, encoded by the Hosts that made them.
	Receipts map[string][]byte
	// Finish answers a request.
	Finish *Finish
	// Forget are chores, by kind and snapshot, that must not be done any more; ErrConflict where one is not there or has been begun.
	Forget []Chore
	// Chores are what remains to be done outside.
	Chores []Chore
}

// Request is a call that carried a request id.
type Request struct {
	Tenant, ID string
	// Method and Hash tell whether a second call is the same.
	Method string
	Hash   []byte
	// WorkID, SandboxIDs and SnapshotID are what the first call began.
	WorkID     string
	SandboxIDs []string
	SnapshotID string
	// Outcome is nil while it is under way.
	Outcome *Outcome
	// LeaseOwner works on it, where it changes no row meanwhile; see Store.ClaimRequest.
	LeaseOwner string
}

// Outcome is how a request ended.
type Outcome struct {
	// Sandboxes as they were then, without their environments.
	Sandboxes []Sandbox `json:",omitempty"`
	// StoppedUsec is how long a fork's source stood still, microseconds.
	StoppedUsec int64     `json:",omitempty"`
	Snapshot    *Snapshot `json:",omitempty"`
	// Err is how it failed; nil where it did not.
	Err *Error `json:",omitempty"`
}

// Finish answers a request.
type Finish struct {
	Tenant, RequestID string
	// SandboxID is whose watchers are woken.
	SandboxID string
	Outcome   Outcome
	// OfRows takes the outcome's sandboxes from the rows that the change makes.
	OfRows bool
}

// Seen is Apply's error for a request that was there before.
type Seen struct{ Request Request }

func (*Seen) Error() string { return "the request was seen before" }

// ChoreKind is what is to be done.
type ChoreKind string

// Kinds of chores.
const (
	// DropSnapshot drops a snapshot that no sandbox names any more, from the registry and from its host.
	DropSnapshot ChoreKind = "drop-snapshot"
	// DropTemplate drops a template whose making has failed, whoever has begun to use it meanwhile.
	DropTemplate ChoreKind = "drop-template"
	// ReleaseLease ends a sandbox's lease on a template.
	ReleaseLease ChoreKind = "release-lease"
	// DestroyVM ends what may be left of a sandbox on a host.
	DestroyVM ChoreKind = "destroy-vm"
)

// Chore is what remains to be done outside the database because of a change.
type Chore struct {
	ID                            int64
	Kind                          ChoreKind
	SandboxID, SnapshotID, HostID string
	// After is how long a new one is left alone.
	After      time.Duration
	Attempts   int
	CreateTime time.Time
}

// Event is one change of a sandbox. Seq grows by one with every change of the tenant's sandboxes.
type Event struct {
	Seq     int64
	Sandbox Sandbox
}

// Page is a position in a list, newest first; the zero Page is its beginning.
type Page struct {
	BeforeTime time.Time
	BeforeID   string
}

// Store keeps sandboxes. Leases are of the owner that the store was opened for.
type Store interface {
	// Apply does a change and returns the rows it inserted, then those it updated, as they are now.
	Apply(ctx context.Context, c Change) ([]Sandbox, error)
	// Get reads a tenant's sandbox; a NotFound error where the tenant has none with this id.
	Get(ctx context.Context, tenant, id string) (Sandbox, error)
	// Find reads sandboxes of any tenant, by id. Those that are not there are not in the answer.
	Find(ctx context.Context, ids []string) (map[string]Sandbox, error)
	// List reads a tenant's sandboxes, newest first. Without states it leaves out those that ended over an hour ago.
	List(ctx context.Context, tenant string, states []State, metadata map[string]string, from Page, limit int) ([]Sandbox, error)
	// Receipt reads how a sandbox was last started; nil where that is not known.
	Receipt(ctx context.Context, tenant, id string) ([]byte, error)
	// Request reads a request.
	Request(ctx context.Context, tenant, requestID string) (Request, error)

	// Apart reads the tenant's sandboxes of an anti-affinity that hold room on a host, or are to be started there.
	Apart(ctx context.Context, tenant, antiAffinity string) ([]Sandbox, error)
	// OnHost reads the sandboxes bound to a host that are not final.
	OnHost(ctx context.Context, hostID string) ([]Sandbox, error)
	// HostsInUse lists the hosts that have running sandboxes.
	HostsInUse(ctx context.Context) ([]string, error)
	// OfWork reads the rows of one work.
	OfWork(ctx context.Context, workID string) ([]Sandbox, error)
	// Undurable reads paused sandboxes whose snapshot was not yet seen durable, oldest first.
	Undurable(ctx context.Context, limit int) ([]Sandbox, error)
	// Expired reads sandboxes whose lifetime ended longer than grace ago.
	Expired(ctx context.Context, grace time.Duration, limit int) ([]Sandbox, error)
	// SnapshotUsers counts the sandboxes that name a snapshot.
	SnapshotUsers(ctx context.Context, snapshotID string) (int, error)
	// Touch notes when sandboxes were used. It makes no event and no new version.
	Touch(ctx context.Context, used map[string]time.Time) error

	// ClaimStuck takes over rows whose worker's lease ended; no two replicas get the same.
	ClaimStuck(ctx context.Context, limit int) ([]Sandbox, error)
	// Renew prolongs leases and returns the ids of those still held.
	Renew(ctx context.Context, ids []string) ([]string, error)
	// Release ends the leases of one work, so that another replica takes it over at once.
	Release(ctx context.Context, workID string) error
	// ClaimRequest takes over a request whose worker's lease ended; false where it has not or another was faster.
	ClaimRequest(ctx context.Context, tenant, requestID string) (bool, error)
	// RenewRequests prolongs the leases of requests, by work id, and returns those still held.
	RenewRequests(ctx context.Context, workIDs []string) ([]string, error)

	// Chores hands out chores that are due; each is due again later, unless ChoreDone is called.
	Chores(ctx context.Context, limit int) ([]Chore, error)
	ChoreDone(ctx context.Context, id int64) error

	// Events reads the tenant's changes after a number, of one sandbox or with an empty id of all.
	Events(ctx context.Context, tenant, sandboxID string, after int64, limit int) ([]Event, error)
	// EventRange tells the first event that is kept and the last; first is last+1 where none is.
	EventRange(ctx context.Context, tenant string) (first, last int64, err error)
	// Subscribe gives a channel that is sent to after changes of a sandbox, or with an empty id of all of the tenant's.
	// Changes in quick succession may be one wake-up; there may be wake-ups without a change. stop ends it.
	Subscribe(tenant, sandboxID string) (wake <-chan struct{}, stop func())
	// Prune removes what is too old to keep: events, answered requests, final sandboxes, revoked keys.
	Prune(ctx context.Context) error

	KeyStore
	TenantStore
	AuditStore
}

// KeyStore keeps API keys by the hash of their secret.
type KeyStore interface {
	InsertKey(ctx context.Context, k Key, hash []byte) (Key, error)
	// KeyByHash notes the use of a key and reads it; NotFound where there is none.
	KeyByHash(ctx context.Context, hash []byte) (Key, error)
	// Keys reads at most limit keys of a tenant, newest first.
	Keys(ctx context.Context, tenant string, from Page, limit int) ([]Key, error)
	RevokeKey(ctx context.Context, tenant, id string) (Key, error)
}

// Needs are what a host must have to restore a snapshot's memory. Its disk boots anywhere.
type Needs struct {
	// VMM is the driver with its accelerator, Machine the machine model that the state belongs to, CPUFeatures those that the guest has.
	VMM         string   `json:",omitempty"`
	Machine     string   `json:",omitempty"`
	CPUFeatures []string `json:",omitempty"`
	// KernelID names the kernel that the snapshot was booted from. It is in the memory, and so no host must have it; that its disk would boot
	// another one is told.
	KernelID string `json:",omitempty"`
}

// PlaceRequest describes what to place.
type PlaceRequest struct {
	SandboxID, Tenant string
	VCPUs             uint32
	// MemoryMB and DiskMB are MiB.
	MemoryMB, DiskMB uint32
	SnapshotID       string
	Needs
	HostLabels map[string]string
	// HostID pins it; Exclude are hosts that have refused.
	HostID  string
	Exclude []string
	// SpreadKey: sandboxes with the same are spread over hosts.
	SpreadKey string
	// Apart: only hosts that have none of the same SpreadKey. ApartFrom are hosts that have one, as far as is known here.
	Apart     bool
	ApartFrom []string
}

// Placement is room held on a host.
type Placement struct {
	HostID, ReservationID string
	// Why says what counted for the host when it was chosen.
	Why string
}

// Scheduler chooses hosts.
type Scheduler interface {
	// Place holds room on a host; an Exhausted error that says what was asked and what is free where none fits.
	Place(ctx context.Context, r PlaceRequest) (Placement, error)
	// Unplace gives held room back.
	Unplace(ctx context.Context, reservationID string) error
	// Explain says for every host whether it would take what is described. Nothing is held.
	Explain(ctx context.Context, r PlaceRequest) ([]Verdict, error)
	// Cordon keeps new sandboxes off a host; NotFound where no such host is known.
	Cordon(ctx context.Context, hostID string) error
}

// Host is a machine that runs a host agent.
type Host struct {
	ID, Address string
	// Lost: not heard from since HeardTime.
	Lost      bool
	HeardTime time.Time
}

// HostSandbox is a sandbox as its host sees it.
type HostSandbox struct {
	ID     string
	State  State
	Reason string
	// SnapshotID is what it was paused to; AutoPaused tells that the host did so by itself.
	SnapshotID     string
	AutoPaused     bool
	LastActiveTime time.Time
	// StateTime is when it came into its state, by the host's clock.
	StateTime time.Time
	// RestoreID names the start that began this life of it; may be empty.
	RestoreID string
}

// Held tells whether the host has a VM for it, or is about to.
func (h HostSandbox) Held() bool { return !h.State.Final() && h.State != Paused }

// Start describes one start of a sandbox on a host.
type Start struct {
	Sandbox Sandbox
	Kind    StartKind
	// SnapshotID to restore; empty for an image.
	SnapshotID string
	RestoreID  string
	Policy     RestorePolicy
}

// Started is how a start went.
type Started struct {
	// StateTime is when it ran; LastActiveTime when it was last used.
	StateTime, LastActiveTime time.Time
	// Receipt is opaque here.
	Receipt []byte
}

// Forked is how a live fork went.
type Forked struct {
	// StoppedUsec is how long the source stood still, microseconds.
	StoppedUsec int64
	// Lives are the restore ids of the copies' starts and Receipts what tells of them, by copy id; both may be empty.
	Lives    map[string]string
	Receipts map[string][]byte
}

// Hosts are the host agents. All calls are idempotent by the ids they carry. Errors are *Error: Exhausted where the host
// has no room, Unavailable where it is out of reach (and may or may not have done it), NotFound where it has no such sandbox.
type Hosts interface {
	// List lists the hosts that the scheduler knows.
	List(ctx context.Context) ([]Host, error)
	// Address is a host's gRPC address; Unavailable where it is not known.
	Address(ctx context.Context, hostID string) (string, error)
	Start(ctx context.Context, hostID string, s Start) (Started, error)
	// Destroy ends a sandbox's life on a host: the one that the start restoreID began, or with an empty restoreID whichever there is. Where
	// there is none, or another, nothing happens.
	Destroy(ctx context.Context, hostID, sandboxID, restoreID string) error
	// Pause, Snapshot and Fork are for the life that the start restoreID began, or with an empty restoreID for whichever there is; a
	// Precondition error where there is another. Pause tells when it was paused.
	Pause(ctx context.Context, hostID, sandboxID, restoreID, snapshotID string) (time.Time, error)
	Snapshot(ctx context.Context, hostID, sandboxID, restoreID, snapshotID, name string, metadata map[string]string) (Snapshot, error)
	Fork(ctx context.Context, hostID, sandboxID, restoreID, snapshotID string, copies []string) (Forked, error)
	Ping(ctx context.Context, hostID, sandboxID string) (lastActive time.Time, err error)
	// Sandboxes lists what is on a host and what ended there lately.
	Sandboxes(ctx context.Context, hostID string) ([]HostSandbox, error)
	// Watch calls fn with everything on the host and then with every change, until ctx ends or the host is out of reach.
	Watch(ctx context.Context, hostID string, fn func(HostSandbox)) error
	Receipt(ctx context.Context, hostID, sandboxID string) ([]byte, error)
	RemoveSnapshot(ctx context.Context, hostID, snapshotID string) error
}

// Snapshot is a saved state as the registry shows it to users.
type Snapshot struct {
	ID, Name string
	// Kind and State are the registry's numbers.
	Kind, State               int32
	SourceSandboxID, ParentID string
	VCPUs, MemoryMB, DiskMB   uint32
	UniqueBytes, SharedBytes  int64
	Generation                uint32
	CreateTime                time.Time
	Metadata                  map[string]string
	HostID, VMM               string
}

// Manifest is what placing and starting need to know of a snapshot.
type Manifest struct {
	ID, Name                string
	VCPUs, MemoryMB, DiskMB uint32
	Needs
	Image string
	// Durable: whole in the registry's store.
	Durable bool
	// HostIDs have its builds.
	HostIDs []string
}

// Snapshots is the registry.
type Snapshots interface {
	// Manifest reads a snapshot by id or by the tenant's name; NotFound where there is none. The empty tenant means any.
	Manifest(ctx context.Context, tenant, snapshot string) (Manifest, error)
	// CopyAs registers a second snapshot of the same saved state, with an id and template name of its own.
	CopyAs(ctx context.Context, tenant, from, id, name string, metadata map[string]string) (Snapshot, error)
	// Drop deletes a snapshot; one that is not there is no error.
	Drop(ctx context.Context, snapshot string) error
	// Lease keeps a snapshot from being deleted by users until Release.
	Lease(ctx context.Context, snapshot, holder string) error
	Release(ctx context.Context, snapshot, holder string) error
	// Stored tells what there is of a tenant.
	Stored(ctx context.Context, tenant string) (Stored, error)
}
