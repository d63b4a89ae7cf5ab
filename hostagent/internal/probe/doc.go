// Package probe finds out what works on this machine.
//
// Vocabulary
//
//   - trial: a boot of the guest's own kernel, without disk and network. It succeeds if the kernel gets to where it misses its root
//     file system, and says so on its console: then processor, memory, interrupts, timers and the serial port work.
//   - verdict: what a trial showed. It holds until the host boots again or the kernel or the VMM is another, and is kept in a file.
//   - check: one line of what `hostagentd doctor` prints.
//
// KVM is judged by a trial, because /dev/kvm can be present, make VMs, and still not run a stock kernel: on a host that is a VM
// itself, say, whose hypervisor lets through only a part. Rejected: judging by the device, by its ioctls, or by what the processor says.
package probe
