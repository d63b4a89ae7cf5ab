// Package vmm is the vocabulary of virtual machine monitors: what the host agent asks of QEMU or Firecracker.
//
// Vocabulary
//
//   - driver: one way of running a virtual machine; knows how to start VMM processes.
//   - VM: one VMM process with one guest in it. A VM is running (its virtual CPUs execute) or stopped (they stand still).
//   - state: everything of a VM but its memory and its disk: registers and devices; one small file.
//   - clean memory: pages that hold what the memory image that the VM was started from holds.
//   - dirty memory: pages that the guest has written since the VM was started.
//
// One scenario: Boot starts a VM from a kernel and returns it running. Stop stands its CPUs still. SaveState writes the
// state file and SaveDirty hands over the dirty pages; both belong to the same instant because the VM stays stopped
// between them. Cont lets it go on, or Kill ends it. Later Restore starts another VMM process from that state file and a
// memory image, which the pager serves lazily, and returns it stopped; Cont sets it going. If the agent's own process
// dies, the VMM lives on; the next agent calls Reopen with the Handle that it journalled.
//
// When each call is legal: Stop on a running VM (on a stopped one it does nothing); SaveState and SaveDirty only between
// Stop and Cont; Cont on a stopped VM; Kill always, any number of times. Every method of a VM returns ErrGone once the
// VMM process has ended. A VM's life is bound to no context: contexts bound only the call that they are passed to.
package vmm

import (
	"context"
	"errors"
	"os"
	"time"
)

// Errors that drivers return, wrapped with what happened. Everything else is an internal failure of the VMM.
var (
	// ErrGone: the VMM process has ended; VM.Exit says how.
	ErrGone = errors.New("the VMM process has ended")
	// ErrUnresponsive: the VMM did not answer on its control socket in time.
	ErrUnresponsive = errors.New("the VMM does not answer")
	// ErrIncompatible: the state file cannot be loaded by this driver, version or CPU.
	ErrIncompatible = errors.New("the state cannot be loaded here")
	// ErrUnsupported: the driver cannot do this at all; see Capabilities.
	ErrUnsupported = errors.New("not supported by this VMM")
	// ErrNotStopped: SaveState or SaveDirty of a VM that runs.
	ErrNotStopped = errors.New("the VM must be stopped first")
)

// Accel is what executes the guest's instructions.
type Accel string

const (
	// KVM is hardware virtualisation by /dev/kvm.
	KVM Accel = "kvm"
	// TCG is QEMU's translation in software; it works everywhere.
	TCG Accel = "tcg"
)

// Capabilities says what a driver can do on this host.
type Capabilities struct {
	// Driver is the driver's name: "qemu" or "firecracker".
	Driver string
	// Version is the VMM's version, like "7.2.22".
	Version string
	// Accel is what it runs guests with.
	Accel Accel
	// Machine names the machine model that the states of VMs booted here belong to, unless a baseline makes it another; equal models are
	// interchangeable.
	Machine string
	// Machines are all models whose states load here.
	Machines []string
	// CPUFeatures are those of package cpu that a guest here can have, sorted: what a state needs, besides its machine.
	CPUFeatures []string
	// LazyMemory: Restore takes memory from the pager.
	LazyMemory bool
	// PrivateMapping: memory is mapped privately from the pager's file, so clones share its pages; else the pager copies.
	PrivateMapping bool
	// MaxVCPUs is the most virtual CPUs of one VM.
	MaxVCPUs int
}

// CPU is the processor that a guest sees. A VM that is restored has the one that it was saved with; one that is booted has the driver's, less
// what the host's mask and a baseline take away.
type CPU struct {
	// Machine names the machine model that states of the VM belong to.
	Machine string `json:"machine"`
	// Model is what makes the same processor again, in the driver's words.
	Model string `json:"model"`
	// Features are those of package cpu, Masked those that were taken away; sorted.
	Features []string `json:"features,omitempty"`
	Masked   []string `json:"masked,omitempty"`
}

// Config describes one VM to start. Paths are absolute and, unless said otherwise, exist when the driver is called.
type Config struct {
	// ID is the sandbox's id; used in names and logs.
	ID string
	// RunDir is a directory of this VM's own for its sockets, made by the caller and removed by it after Kill.
	RunDir string
	// VCPUs is the number of virtual CPUs.
	VCPUs int
	// MemoryBytes is the guest's memory, a multiple of 1 MiB.
	MemoryBytes int64

	// Kernel is a bzImage (QEMU) or vmlinux (Firecracker); Initrd an initramfs; Cmdline the kernel's parameters. The
	// driver adds only what its machine model needs (console, reboot, panic).
	Kernel, Initrd, Cmdline string

	// Baseline has the only features that the processor of a VM to be booted may have; none: all that there are.
	Baseline []string
	// CPU is the processor of a VM to be reopened; nil where the agent that started it did not know.
	CPU *CPU

	// Memory is the pager's file for the memory image, opened read-only; its size is MemoryBytes. Nil if the driver's
	// Capabilities lack PrivateMapping. The driver passes it on and never closes it.
	Memory *os.File
	// PagerSocket is where the VMM hands over its userfaultfd. Empty: memory is plain and anonymous, without a pager.
	PagerSocket string

	// DiskSocket is a Unix socket that serves the disk over NBD (export name ""); DiskPath is a device or file instead,
	// for VMMs that do not speak NBD. Exactly one is set.
	DiskSocket, DiskPath string

	// NetNS is the path of the network namespace to run the VMM in; TapName the TAP device in it; MAC the guest's address.
	NetNS, TapName, MAC string

	// ConsolePath is the file that the guest's serial console is appended to; made by the driver if missing.
	ConsolePath string
	// UID and GID that the VMM runs as; RunDir is made theirs by the driver where the VMM writes there.
	UID, GID int
	// CgroupProcs are the cgroup.procs (v2) or tasks files that the VMM is put in before it executes anything.
	CgroupProcs []string
}

// Driver starts VMs. It is safe for concurrent use.
type Driver interface {
	// Capabilities says what the driver can do here; it never fails once the driver was made.
	Capabilities() Capabilities
	// CPU is the processor of a VM that would be booted with a baseline.
	CPU(baseline []string) CPU
	// Boot starts a VM from its kernel and returns it running.
	Boot(ctx context.Context, cfg Config) (VM, error)
	// Restore starts a VM from a state file and returns it stopped. The pager must be ready to serve cfg.PagerSocket.
	// ErrIncompatible where the state belongs to another machine model or version.
	Restore(ctx context.Context, cfg Config, statePath string) (VM, error)
	// Reopen takes over a VM that a former process of this agent started. ErrGone where it has ended.
	Reopen(ctx context.Context, cfg Config, h Handle) (VM, error)
}

// Handle is what a later process needs to reopen a VM; it is journalled as JSON.
type Handle struct {
	// Driver that started it.
	Driver string `json:"driver"`
	// PID of the VMM, and its start time in clock ticks since boot (/proc/PID/stat field 22), which together are unique.
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
	// Control is the path of the control socket (QMP, Firecracker API).
	Control string `json:"control"`
}

// DirtyWriter takes a VM's dirty pages. Ranges come in ascending order, page-aligned, and never overlap.
type DirtyWriter interface {
	// WriteDirty takes len(p) bytes of guest memory at offset off of the memory image. It must not keep p.
	WriteDirty(p []byte, off int64) error
}

// VM is one VMM process. Its methods are safe for concurrent use; conflicting ones wait for each other.
type VM interface {
	// Handle identifies the VM to a later process.
	Handle() Handle
	// CPU is the processor that the guest sees.
	CPU() CPU
	// Stop stands the virtual CPUs still and returns once they do and pending disk writes are done.
	Stop(ctx context.Context) error
	// Cont lets them go on.
	Cont(ctx context.Context) error
	// SaveState writes the state file. The VM must be stopped.
	SaveState(ctx context.Context, path string) error
	// SaveDirty hands every dirty page to w. The VM must be stopped. It may hand over clean pages too, but never misses
	// a dirty one. It returns the number of bytes handed over.
	SaveDirty(ctx context.Context, w DirtyWriter) (int64, error)
	// PrivateBytes is the memory that only this VM has of its guest: an estimate that costs little to read.
	PrivateBytes() (int64, error)
	// Kill ends the VMM process at once and returns when it is gone. Killing one that is gone is no error.
	Kill(ctx context.Context) error
	// Done is closed when the VMM process has ended.
	Done() <-chan struct{}
	// Exit says how it ended; the zero Exit while it runs.
	Exit() Exit
}

// Exit says how a VMM process ended.
type Exit struct {
	// Time it was seen to have ended.
	Time time.Time
	// Code is its exit code, -1 if unknown or ended by a signal.
	Code int
	// Signal that ended it, 0 if none or unknown.
	Signal int
	// Reason is a sentence: "the VMM was killed by signal 9 (SIGKILL)", "the guest powered off", with the VMM's last
	// words where it had any.
	Reason string
}
