// Package firecracker drives Firecracker as a VMM, on hosts whose KVM boots Linux.
//
// Vocabulary
//
//   - release: a version of Firecracker; see releases for what each can do. Which states it loads is told by its state format.
//   - room: what the VMM sees of the host's files; see package launch. Every path in it is the same for every VM (see layout), because
//     Firecracker writes paths into its states and opens them again where a state is loaded.
//   - spool: the sparse file that Firecracker writes dirty memory to.
//   - attachment: a disk that is served over NBD, as a block device or a file; see Disks.
//
// One scenario. Boot starts the process in its room, configures machine, kernel, disk, network and entropy by one request each, and starts
// the guest. Stop pauses it. SaveState has Firecracker make a diff snapshot: state and dirty memory in one request, so the memory
// waits in the spool until SaveDirty reads it. Restore starts another process and has it load the state with the memory backend "Uffd":
// Firecracker makes the userfaultfd and does the pager's handshake itself.
//
// # Memory
//
// It is anonymous, and the pager copies pages in. Dirty pages are told by KVM's log, which Firecracker reads and resets with each diff
// snapshot. A VM that goes on after a snapshot therefore keeps its spool: Firecracker writes the next diff over it, and so the spool has
// every page that was written since the VM was started. A booted VM has no pager; its first diff has all that the loader and the
// guest have written, the rest is zeros.
//
// Which pages the spool has is read from its extents. That is right only where an extent is never larger than what was written: on file
// systems with blocks of 4 KiB, which is checked. The spool lies in Config.RunDir; its size is that of the memory, what it takes that of
// the dirty pages. On a tmpfs those would be charged to the VMM's cgroup, and cannot be reclaimed.
//
// # Serial port, log and metrics
//
// Firecracker writes each to a FIFO in its directory, which the agent reads: so a guest that prints without end, or a VMM gone wild,
// fills no disk, and nothing breaks when the agent is down (the VMM holds both ends of each FIFO, and never waits for room). What the
// guest printed beyond 64 KiB while no agent was there is lost.
//
// A guest cannot power a Firecracker VM off; Linux halts instead, and says so on its console, by which the driver knows.
//
// # A VMM that fails
//
// A guard asks the VMM for its state now and then. If an answer is overdue, or is not Firecracker's API, the guard ends the process and
// says so in its Exit: a VM that cannot be controlled is not left running.
//
// # State files
//
// What Firecracker writes is wrapped, because Firecracker trusts it. See package statefile; the magic is "COVEYFS", the version 2, or 1, whose
// description (see stateMeta) lacks the guest's features.
//
// Firecracker only warns when a state comes from another processor, and the guest crashes later: so the description names the processor, and
// a state is refused unless it is the same.
//
// What the host's mask or a baseline takes away from a VM that is booted a custom template clears in its CPUID (PUT /cpu-config). With a
// baseline a state loads on every processor of the vendor whose guests can have the features: its CPUID goes with it. What KVM's model
// specific registers lack there makes the load fail, and then the policy decides.
//
// # Jailer
//
// Where there is a jailer of the same version (see Config.Jailer), it is what executes Firecracker: a second cage inside the room. Package
// launch gives the process its namespaces and cgroups either way, because those are the same for every driver.
//
// Chosen: the raw API, one connection to each VMM. Rejected: the Go SDK (binds the VM to a context, and starts processes itself), a
// configuration file (cannot load snapshots), full snapshots (write all of the memory each time), and Firecracker's dirty tracking by
// mincore (hands over every page that was ever read).
package firecracker
