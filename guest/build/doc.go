// Package build makes what a guest starts from: kernel, initramfs and images.
//
//   - kernel: Debian's cloud kernel package, fetched and unpacked, never installed. bzImage for QEMU as it is; vmlinux,
//     unpacked from it, for VMMs that load ELF.
//   - initramfs: /init is guestd, beside it the few modules that a virtio guest needs. Uncompressed: unpacking costs
//     more under software emulation than reading.
//   - images: ext4 filesystems with nothing of ours inside. "base" is a small Debian with python3, git and curl; "tiny" is
//     busybox, for tests that need a guest but not a distribution.
//
// Everything is cached by the content of its recipe, so that a second build takes milliseconds. Chosen: Debian packages
// and mke2fs -d, which need no loop device and no mount. Rejected: a kernel of our own (minutes to build and a security
// duty), OCI base images (a registry that a fresh machine may not reach), and virt-builder (downloads opaque images).
package build
