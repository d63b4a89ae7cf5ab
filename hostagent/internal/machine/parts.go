package machine

import (
	"context"
	"os"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// Parts make what machines hold. All are safe for concurrent use.
//
// Chosen: this package says what it needs of each part in its own words, and adapters fit the real parts to them, so that the
// order of things under failure is tested without a VM. The words stay few: a part whose vocabulary leaks in here is wrong.
type Parts struct {
	Driver    vmm.Driver
	Slots     Slots
	Cages     Cages
	Disks     Disks
	Memories  Memories
	Snapshots Snapshots
	Guests    Guests
	// Registry is nil where snapshots stay on this host.
	Registry Registry
}

// Slots hands out network places.
type Slots interface {
	Acquire(ctx context.Context, n Network) (Slot, error)
	// Adopt takes a slot that a former agent had handed out.
	Adopt(ctx context.Context, id string, n Network) (Slot, error)
}

// Slot is the network place of one sandbox.
type Slot interface {
	ID() string
	// NetNS is the path of its namespace, TAP its device in there, MAC the guest's address.
	NetNS() string
	TAP() string
	MAC() string
	// Release gives it back for scrubbing. The VM has ended.
	Release(ctx context.Context) error
}

// Cages make what bounds a VMM: a cgroup and an unprivileged user.
type Cages interface {
	Make(ctx context.Context, id string, vcpus int, memoryBytes int64) (Cage, error)
	// Open finds the cage that a former agent made, or makes it.
	Open(ctx context.Context, id string, vcpus int, memoryBytes int64) (Cage, error)
}

// Cage bounds one VMM.
type Cage interface {
	UID() int
	GID() int
	// Procs are the files that the VMM's pid is written to.
	Procs() []string
	// CPUTime is what its processes have used.
	CPUTime() (time.Duration, error)
	// Wanted is, by thread id, how long each of its threads has run or has waited for a CPU to run on.
	Wanted() (map[int]time.Duration, error)
	// Remove kills whatever is still in it and removes it.
	Remove(ctx context.Context) error
}

// Disks make the disks of sandboxes: a base that is never written, and an overlay that takes the writes.
type Disks interface {
	// Create makes an empty overlay of size bytes over base and serves it on a Unix socket to the user uid.
	Create(ctx context.Context, id string, base Base, size int64, socket string, uid int) (Disk, error)
	// Reopen serves the overlay that a former agent had made at the same socket again.
	Reopen(ctx context.Context, id string, base Base, size int64, socket string, uid int) (Disk, error)
}

// Disk is one sandbox's disk.
type Disk interface {
	// OverlayBytes is what the overlay takes on the host.
	OverlayBytes() (int64, error)
	// Discard ends serving and removes the overlay.
	Discard(ctx context.Context) error
}

// Memories serve the memory of VMs from images that clones share.
type Memories interface {
	// Open prepares a session on a Unix socket for the user uid. A nil base is an image of zeros.
	Open(ctx context.Context, id string, base Base, size int64, socket string, uid int) (Memory, error)
	// Reopen takes back the session of a VMM process that a former agent had started.
	Reopen(ctx context.Context, id string, base Base, size int64, socket string, uid, pid int) (Memory, error)
}

// Memory is one VM's session with the pager.
type Memory interface {
	// File is the image, opened read-only, and Socket where the VMM hands over its userfaultfd; see vmm.Config.
	File() *os.File
	Socket() string
	// Failed is closed when a page cannot be served; Err then says why. The VM cannot go on.
	Failed() <-chan struct{}
	Err() error
	// Faulted is closed when the VM has asked for its first page.
	Faulted() <-chan struct{}
	// Sources counts the pages brought in until now.
	Sources() []PageSource
	// Close ends the session. The VM has ended.
	Close(ctx context.Context) error
}

// Snapshots keeps saved states and stock images.
type Snapshots interface {
	// Open finds a snapshot on this host, at a peer or in the registry, and pins it until Release. ErrSnapshotNotFound,
	// ErrDamaged.
	Open(ctx context.Context, id string) (Base, error)
	// OpenDisk is Open for a boot from the disk alone: state and memory are not read, and may be damaged.
	OpenDisk(ctx context.Context, id string) (Base, error)
	// OpenImage pins a stock image, by its name or its id. What is pinned stays, whatever the name comes to mean. ErrImageNotFound.
	OpenImage(ctx context.Context, name string) (Base, error)
	// Draft begins a snapshot of a VM whose memory and disk are given; nothing is to be seen of it until Commit.
	Draft(ctx context.Context, m Manifest, memory Memory, disk Disk) (Draft, error)
	// Remove removes a snapshot from this host, at once or when it is pinned no more; builds that others need stay. One
	// that is not here is no error.
	Remove(ctx context.Context, id string) error
	// Local lists the snapshots that this host has.
	Local() []string
}

// Base is what a sandbox starts from, pinned: a snapshot or a stock image.
type Base interface {
	Manifest() Manifest
	// StatePath is the device state's file; empty for an image.
	StatePath() string
	Release()
}

// SnapshotKind says why a snapshot is made.
type SnapshotKind string

// The kinds of snapshot.
const (
	TemplateSnapshot SnapshotKind = "template"
	PauseSnapshot    SnapshotKind = "pause"
	ImageSnapshot    SnapshotKind = "image"
	ForkSnapshot     SnapshotKind = "fork"
)

// Manifest describes a snapshot or, with the fields that apply, a stock image.
type Manifest struct {
	ID, ParentID string
	Kind         SnapshotKind
	// Name is a template's name, Labels its labels.
	Name       string
	Labels     map[string]string
	Tenant     string
	Generation int
	// Driver, Version and Accel are those of vmm.Capabilities that saved it, Machine that of the VM's vmm.CPU.
	Driver, Version, Machine, Accel string
	VCPUs                           int
	// MemoryBytes and DiskBytes are sizes of the address spaces.
	MemoryBytes, DiskBytes int64
	// CPUFeatures are those that its guest has, of package cpu, sorted; empty where that is not known.
	CPUFeatures []string `json:",omitempty"`
	// KernelID is the digest of kernel and initramfs. It is no condition of a restore: the kernel is in the memory.
	KernelID string
	// Image is the stock image that it goes back to; ImageID that image's digest.
	Image, ImageID  string
	SourceSandboxID string
	// MemoryBuilds and DiskBuilds are the ids that its headers name.
	MemoryBuilds, DiskBuilds []string
	// StoredBytes is what its own files take.
	StoredBytes int64
	CreateTime  time.Time
}

// Draft is a snapshot in the making. It belongs to one goroutine.
type Draft interface {
	// StatePath is where the device state is to be written.
	StatePath() string
	// WriteDirty takes the dirty memory.
	vmm.DirtyWriter
	// TakeDisk holds on to the disk's content as it is now; the VM is stopped, and may go on afterwards.
	TakeDisk(ctx context.Context) error
	// Commit makes the snapshot safe on this host's disk. Once it returns without error the snapshot exists.
	Commit(ctx context.Context) (Manifest, SaveStats, error)
	// Abort removes what there is of it; after Commit it does nothing.
	Abort(ctx context.Context) error
}

// SaveStats says what a snapshot cost.
type SaveStats struct {
	// Stopped is how long the guest stood still; Total until all was safe on the disk.
	Stopped, Total time.Duration
	// Bytes that had changed, and that were written before compression.
	MemoryDirty, MemoryWritten, DiskDirty, DiskWritten int64
	// Stored is what was written in all, after compression.
	Stored int64
}

// Guests reach guestd.
type Guests interface {
	// Dial prepares a connection and begins to connect; it never waits.
	Dial(slot Slot) (Guest, error)
}

// Identity is what makes a restored guest unlike every other of its snapshot.
type Identity struct {
	RestoreID, SandboxID string
	// Hostname and MachineID; empty keeps what the guest has.
	Hostname, MachineID string
	Env                 map[string]string
	Nameservers         []string
	// Same: the sandbox goes on as it was; not a clone.
	Same bool
}

// GuestMetrics is what a guest uses.
type GuestMetrics struct {
	MemoryTotal, MemoryAvailable int64
	CPUBusy                      time.Duration
	// KeepAlive counts the processes in the guest that hold the inactivity timer.
	KeepAlive int
}

// Guest is guestd in one VM.
type Guest interface {
	// Ready returns once guestd serves.
	Ready(ctx context.Context) error
	// AfterRestore gives the guest its identity; it waits until guestd serves.
	AfterRestore(ctx context.Context, id Identity) (Attestation, error)
	// Warm runs a command, so that a snapshot has in memory what the first exec needs.
	Warm(ctx context.Context) error
	// Sync writes the guest's page cache to its disk.
	Sync(ctx context.Context) error
	Metrics(ctx context.Context) (GuestMetrics, error)
	Close() error
}

// Registry keeps snapshots beyond this host.
type Registry interface {
	// Register makes a snapshot of this host known, and has it uploaded in the background.
	Register(ctx context.Context, m Manifest) error
}
