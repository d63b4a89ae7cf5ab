package api

// The bodies of requests and answers. Firecracker's own description of its API names the fields; here stand those that are used, and
// each says what this driver means by it. Sizes are in MiB, paths those that the VMM sees.

// InstanceInfo is the answer of GET /.
type InstanceInfo struct {
	AppName    string `json:"app_name"`
	ID         string `json:"id"`
	State      string `json:"state"`
	VMMVersion string `json:"vmm_version"`
}

// States of an instance.
const (
	NotStarted = "Not started"
	Running    = "Running"
	Paused     = "Paused"
)

// MachineConfig is the body of PUT /machine-config.
type MachineConfig struct {
	VCPUCount       int   `json:"vcpu_count"`
	MemSizeMiB      int64 `json:"mem_size_mib"`
	SMT             bool  `json:"smt"`
	TrackDirtyPages bool  `json:"track_dirty_pages"`
}

// CPUConfig is the body of PUT /cpu-config: a custom template.
type CPUConfig struct {
	CPUIDModifiers []LeafModifier `json:"cpuid_modifiers"`
}

// LeafModifier changes what CPUID answers for a leaf. Flags are KVM's for it.
type LeafModifier struct {
	Leaf      string             `json:"leaf"`
	Subleaf   string             `json:"subleaf"`
	Flags     int                `json:"flags"`
	Modifiers []RegisterModifier `json:"modifiers"`
}

// RegisterModifier changes one register: its bitmap is "0b" and 32 of 0, 1 and x, which leaves the bit as it is.
type RegisterModifier struct {
	Register string `json:"register"`
	Bitmap   string `json:"bitmap"`
}

// BootSource is the body of PUT /boot-source.
type BootSource struct {
	KernelImagePath string `json:"kernel_image_path"`
	InitrdPath      string `json:"initrd_path,omitempty"`
	BootArgs        string `json:"boot_args,omitempty"`
}

// Drive is the body of PUT /drives/ID.
type Drive struct {
	DriveID      string `json:"drive_id"`
	PathOnHost   string `json:"path_on_host"`
	IsRootDevice bool   `json:"is_root_device"`
	IsReadOnly   bool   `json:"is_read_only"`
	CacheType    string `json:"cache_type,omitempty"`
}

// Writeback has the guest's flushes reach the file; the default drops them.
const Writeback = "Writeback"

// NetworkInterface is the body of PUT /network-interfaces/ID.
type NetworkInterface struct {
	IfaceID     string `json:"iface_id"`
	HostDevName string `json:"host_dev_name"`
	GuestMAC    string `json:"guest_mac,omitempty"`
}

// EntropyDevice is the body of PUT /entropy.
type EntropyDevice struct{}

// Balloon is the body of PUT /balloon.
type Balloon struct {
	AmountMiB    int64 `json:"amount_mib"`
	DeflateOnOOM bool  `json:"deflate_on_oom"`
}

// Action is the body of PUT /actions.
type Action struct {
	ActionType string `json:"action_type"`
}

// Actions.
const (
	InstanceStart = "InstanceStart"
	FlushMetrics  = "FlushMetrics"
)

// VM is the body of PATCH /vm.
type VM struct {
	State string `json:"state"`
}

// Resumed is the state to ask for so that a VM goes on; the other is Paused.
const Resumed = "Resumed"

// SnapshotCreate is the body of PUT /snapshot/create.
type SnapshotCreate struct {
	SnapshotType string `json:"snapshot_type"`
	SnapshotPath string `json:"snapshot_path"`
	MemFilePath  string `json:"mem_file_path"`
}

// Kinds of snapshots.
const (
	Full = "Full"
	Diff = "Diff"
)

// SnapshotLoad is the body of PUT /snapshot/load.
type SnapshotLoad struct {
	SnapshotPath     string            `json:"snapshot_path"`
	MemBackend       MemoryBackend     `json:"mem_backend"`
	TrackDirtyPages  bool              `json:"track_dirty_pages,omitempty"`
	EnableDiff       bool              `json:"enable_diff_snapshots,omitempty"`
	ResumeVM         bool              `json:"resume_vm"`
	NetworkOverrides []NetworkOverride `json:"network_overrides,omitempty"`
}

// MemoryBackend says where memory comes from.
type MemoryBackend struct {
	BackendType string `json:"backend_type"`
	BackendPath string `json:"backend_path"`
}

// Uffd is the backend in which a pager serves faults.
const Uffd = "Uffd"

// NetworkOverride gives an interface of a snapshot another TAP device.
type NetworkOverride struct {
	IfaceID     string `json:"iface_id"`
	HostDevName string `json:"host_dev_name"`
}

// Fault is the body of an answer that is no success.
type Fault struct {
	FaultMessage string `json:"fault_message"`
}
