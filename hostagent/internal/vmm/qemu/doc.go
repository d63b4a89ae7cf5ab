// Package qemu drives QEMU's microvm machine as a VMM: in software (TCG) or with KVM.
//
// The machine: microvm with ACPI and RTC, one serial port, and on virtio-mmio a disk (NBD over a Unix socket, which QEMU
// connects again when the host agent comes back), a network card on an inherited TAP descriptor and a source of entropy.
// Nothing else is emulated.
//
// Control goes over QMP on a Unix socket in the VM's own directory. The agent makes that socket and QEMU inherits it, so
// connecting needs no waiting for a file to appear.
//
// # Memory
//
// With a pager (Config.Memory and PagerSocket) the guest's memory is the image's file, which the preloaded object maps privately
// and hands to the pager; see package preload. QEMU believes that it is shared, so its migration capability x-ignore-shared
// keeps it out of the state, and dirty pages are the private anonymous ones of the mapping. Without a pager memory is
// anonymous, and the VM cannot be saved.
//
// # State files
//
// What QEMU writes is wrapped, because QEMU trusts it: a damaged byte may load, fail, or end in an assertion. See package statefile; the magic
// is "COVEYQS", the version 2, or 1, whose description (see stateMeta) lacks the processor.
//
// The description says what the VM must be like to load the stream. State passes through memory files: the VMM sees no path of
// a snapshot, and what has been verified is what QEMU reads.
//
// # The caged process
//
// See package launch. QEMU sees /usr, its own directory, and the sockets and files that it was given, and can write to none but the
// console, which it inherits; its seccomp filter denies it to execute programs, gain privileges and change its scheduling. Its files cannot
// grow beyond 16 MiB, which bounds the console: what a guest prints after that is lost until somebody truncates it.
//
// # The processor
//
// Under TCG the model is Nehalem, which is emulated the same on every host, and quicker than newer ones. Under KVM it is the
// host's own, and a state loads only where the processor is the same, unless the configuration names a model.
//
// What a guest has of it QEMU is asked when the driver is made (query-cpu-model-expansion): the model's features, as far as the accelerator
// has them. The host's mask and a baseline take features away from VMs that are booted, by -cpu MODEL,-feature. Under KVM a baseline is
// laid upon a generic model in place of the host's own, so that hosts with other processors of the vendor can load the state. A restored
// VM gets the processor that its state describes, whatever masks and baselines say, and is refused where the host's guests cannot have it.
//
// Under TCG a guest's time stamp counter runs as fast as the host's, and is the only clock that its kernel has. Where a state is loaded on
// a host with another frequency the guest's clock runs too fast or too slow from then on; the log says so.
//
// Chosen: the distribution's QEMU with a preloaded object, inherited descriptors and QMP. Rejected: libvirt (another daemon which
// owns the VMs), a patched QEMU (nobody would get its security updates), and restoring by -incoming with a path (the VMM
// would need to read snapshots).
package qemu
