package registry

import (
	"cmp"
	"slices"
	"time"
)

// SnapshotKind says why a snapshot exists.
type SnapshotKind string

// Kinds of snapshots.
const (
	// Template is named and belongs to its user.
	Template SnapshotKind = "TEMPLATE"
	// Pause is the saved state of a sandbox, and Fork what a fork's copies came from; they go with their sandboxes.
	Pause SnapshotKind = "PAUSE"
	Fork  SnapshotKind = "FORK"
	// Image is the first-boot snapshot of a stock image; it belongs to no tenant.
	Image SnapshotKind = "IMAGE"
)

// State is where a snapshot is in its life.
type State string

// States.
const (
	// Local: safe on its host's disk only.
	Local State = "LOCAL"
	// Durable: in the object store, whole and checked.
	Durable State = "DURABLE"
	// Deleting: deleted; what is left of it goes when its leases have ended.
	Deleting State = "DELETING"
)

// Snapshot is a saved state: device state, memory and disk.
type Snapshot struct {
	ID, Tenant string
	// Name is a template's name.
	Name     string
	Kind     SnapshotKind
	State    State
	Manifest Manifest
	Metadata map[string]string
	// HostID is the host that made it.
	HostID string
	// UniqueBytes are those of builds that only this snapshot names, SharedBytes of those that others name too.
	UniqueBytes, SharedBytes int64
}

// Object names stored bytes.
type Object struct {
	Key  string
	Size int64
	// SHA256 has 32 bytes.
	SHA256 []byte
}

// Build is one generation's data of memory or disk.
type Build struct {
	ID string
	// Kind is "memory" or "disk".
	Kind string
	Data Object
}

// Manifest is everything needed to restore a snapshot anywhere.
type Manifest struct {
	SnapshotID string
	ParentID   string `json:",omitempty"`
	Generation uint32
	// VMM to Accel are what saved it; a host must have the same.
	VMM, VMMVersion, Machine, Accel string
	VCPUs                           uint32
	// MemoryBytes and DiskBytes are the sizes of the address spaces.
	MemoryBytes, DiskBytes int64
	KernelID               string
	CPUFeatures            []string `json:",omitempty"`
	// State, MemoryHeader and DiskHeader are required; WorkingSet may be absent.
	State, MemoryHeader, DiskHeader *Object
	WorkingSet                      *Object `json:",omitempty"`
	Builds                          []Build `json:",omitempty"`
	Image                           string
	SourceSandboxID                 string
	CreateTime                      time.Time
	Annotations                     map[string]string `json:",omitempty"`
}

// Role is what an object is to the snapshot that names it.
type Role string

// Roles.
const (
	RoleState        Role = "state"
	RoleMemoryHeader Role = "memory-header"
	RoleDiskHeader   Role = "disk-header"
	RoleWorkingSet   Role = "working-set"
	RoleMemoryBuild  Role = "memory"
	RoleDiskBuild    Role = "disk"
)

// Reference is a snapshot's naming of an object.
type Reference struct {
	Object
	Role Role
	// BuildID is set for builds.
	BuildID string
}

// References lists what the manifest names, by key, each once.
func (m *Manifest) References() []Reference {
	var all []Reference
	add := func(o *Object, r Role, build string) {
		if o != nil {
			all = append(all, Reference{*o, r, build})
		}
	}
	add(m.State, RoleState, "")
	add(m.MemoryHeader, RoleMemoryHeader, "")
	add(m.DiskHeader, RoleDiskHeader, "")
	add(m.WorkingSet, RoleWorkingSet, "")
	for i := range m.Builds {
		b := &m.Builds[i]
		add(&b.Data, Role(b.Kind), b.ID)
	}
	slices.SortStableFunc(all, func(a, b Reference) int { return cmp.Compare(a.Key, b.Key) })
	return slices.CompactFunc(all, func(a, b Reference) bool { return a.Key == b.Key })
}

// Lease keeps a snapshot.
type Lease struct {
	SnapshotID, Holder string
	// Until is zero where it ends only by release.
	Until time.Time
}

// BuildUse is a build and the snapshots that name it.
type BuildUse struct {
	ID, Kind string
	Stored   int64
	// NamedBy are ids of the asking tenant's snapshots alone, at most maxNamedBy.
	NamedBy []string
}

// Explanation says what a snapshot consists of and what pins it.
type Explanation struct {
	Snapshot Snapshot
	Builds   []BuildUse
	// PinnedBy are sentences; empty where nothing keeps the snapshot from being deleted.
	PinnedBy []string
	// Lineage are its ancestors, nearest first.
	Lineage []string
}

// Usage is what a tenant's snapshots take.
type Usage struct {
	Snapshots int
	// Bytes of all objects that they name, each counted once.
	Bytes int64
	// Templates are the ids of those that are.
	Templates []string
}

// Quota bounds a tenant's usage; 0 means no bound.
type Quota struct {
	Snapshots int   `yaml:"snapshots"`
	Bytes     int64 `yaml:"bytes"`
}
