package machine

import (
	"fmt"
	"slices"
	"time"
)

// State is where a sandbox is on its host.
type State string

// The states. A machine in one of the first four is held: it has room and holdings.
const (
	Starting State = "STARTING"
	Running  State = "RUNNING"
	Pausing  State = "PAUSING"
	Stopping State = "STOPPING"
	Paused   State = "PAUSED"
	Stopped  State = "STOPPED"
	Failed   State = "FAILED"
)

// Held tells whether a machine in this state has something of the host.
func (s State) Held() bool { return slices.Contains([]State{Starting, Running, Pausing, Stopping}, s) }

// Kind is how a sandbox is started.
type Kind string

// The kinds of start.
const (
	ColdBoot Kind = "cold-boot"
	Spawn    Kind = "spawn"
	Resume   Kind = "resume"
	ForkCopy Kind = "fork"
	DiskBoot Kind = "disk-boot"
)

// RestorePolicy says what to do where saved memory cannot be restored.
type RestorePolicy string

// The policies; the empty one means MemoryRequired.
const (
	MemoryRequired RestorePolicy = "memory-required"
	PreferMemory   RestorePolicy = "prefer-memory"
	DiskOnly       RestorePolicy = "disk-only"
)

// Network says what a sandbox may reach; see package network.
type Network struct {
	Disabled   bool     `json:"disabled,omitempty"`
	AllowCIDRs []string `json:"allow_cidrs,omitempty"`
	DenyCIDRs  []string `json:"deny_cidrs,omitempty"`
}

// Spec is all that the host needs to know of a sandbox.
type Spec struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant,omitempty"`
	// Image is the stock image that it is made from; SnapshotID the snapshot instead. Exactly one is set.
	Image      string `json:"image,omitempty"`
	SnapshotID string `json:"snapshot_id,omitempty"`
	VCPUs      int    `json:"vcpus"`
	// MemoryMB and DiskMB are MiB.
	MemoryMB int64 `json:"memory_mb"`
	DiskMB   int64 `json:"disk_mb"`
	// Timeout is how long it may be idle before it is paused; 0 means for ever.
	Timeout time.Duration     `json:"timeout,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
	Network Network           `json:"network"`
	// ColdBoot boots the image instead of spawning it from its template.
	ColdBoot bool          `json:"cold_boot,omitempty"`
	Policy   RestorePolicy `json:"policy,omitempty"`
	Kind     Kind          `json:"kind,omitempty"`
	// Expire is when it is destroyed, whatever it does; zero means never.
	Expire time.Time `json:"expire,omitzero"`
}

// MemoryBytes is the guest's memory.
func (s Spec) MemoryBytes() int64 { return s.MemoryMB << 20 }

// DiskBytes is the size of its disk.
func (s Spec) DiskBytes() int64 { return s.DiskMB << 20 }

func (s Spec) room() Room {
	return Room{VCPUs: s.VCPUs, MemoryMB: s.MemoryMB, DiskMB: s.DiskMB, Slots: 1}
}

// kind is how the spec is started where the caller did not say.
func (s Spec) kind() Kind {
	switch {
	case s.SnapshotID == "" && s.ColdBoot:
		return ColdBoot
	case s.SnapshotID == "", s.Kind == "", s.Kind == ColdBoot:
		return Spawn
	}
	return s.Kind
}

// check refuses what no host can start.
func (s Spec) check(maxVCPUs int) error {
	switch {
	case !validID.MatchString(s.ID):
		return &FieldError{"sandbox_id", fmt.Sprintf("must be letters, digits and underscores, at most 64, got %q", s.ID)}
	case s.Image == "" && s.SnapshotID == "":
		return &FieldError{"image", "image or snapshot_id must be set"}
	case s.Image != "" && s.SnapshotID != "":
		return &FieldError{"image", "image and snapshot_id cannot both be set"}
	case s.SnapshotID != "" && !validID.MatchString(s.SnapshotID):
		return &FieldError{"snapshot_id", fmt.Sprintf("must be letters, digits and underscores, at most 64, got %q", s.SnapshotID)}
	case s.VCPUs < 1 || s.VCPUs > maxVCPUs:
		return &FieldError{"vcpus", fmt.Sprintf("must be 1 to %d, got %d", maxVCPUs, s.VCPUs)}
	case s.MemoryMB < minMemoryMB || s.MemoryMB > maxMemoryMB:
		return &FieldError{"memory_mb", fmt.Sprintf("must be %d to %d, got %d", minMemoryMB, maxMemoryMB, s.MemoryMB)}
	case s.DiskMB < 1 || s.DiskMB > maxDiskMB:
		return &FieldError{"disk_mb", fmt.Sprintf("must be 1 to %d, got %d", maxDiskMB, s.DiskMB)}
	case s.Timeout < 0:
		return &FieldError{"timeout_sec", "must not be negative"}
	}
	return nil
}

// Limits of one sandbox, MiB.
const (
	minMemoryMB = 64
	maxMemoryMB = 1 << 20
	maxDiskMB   = 1 << 24
)
