// Package vmmtest is the conformance suite of vmm.Driver: what the host agent relies on, tried on real VMs.
//
// A driver's test calls Run, and its TestMain begins with Main, because the suite starts the test's executable again: to play an
// agent that ends, and whose VMs another one takes over.
//
// The guest is testguest, packed as /init into an archive behind the initramfs that guest-build makes (the kernel unpacks both, and
// the later one wins). Memory is served by the real pager, disks by the real package disk, the network is a TAP device in a
// network namespace. A VM's snapshot is kept whole and in memory, because what is tested is the driver and not the way in which
// snapshots are stored.
//
// Booting takes seconds under emulation and restoring does not, so most tests start from one snapshot of a booted guest.
package vmmtest
