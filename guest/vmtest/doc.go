// Package vmtest tests the guest in a real virtual machine: the kernel, initramfs and image that guest-build makes, in QEMU
// under software emulation, reached over a TAP from inside a network namespace, as on a host.
//
// QEMU is driven by hand here and not by the host agent's driver: the guest is tested alone.
package vmtest
