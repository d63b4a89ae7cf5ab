// Package attach makes paths of disks that are served over NBD, for Firecracker, which opens block devices and files only.
//
// Vocabulary
//
//   - device: /dev/nbdN, with the kernel as the NBD client. It outlives the agent: reads and writes wait until the next agent gives the
//     kernel another connection.
//   - copy: a file with the disk's content, for kernels without nbd. What the guest changes in it is written back to the server
//     when the VM is stopped and saved, so nothing behind the server knows of the difference.
//
// Where the kernel has nbd (module nbd, Debian has it), disks are devices, and a start costs the same whatever the disk's size. A copy
// costs reading the whole disk at each start, and at each snapshot the changed part of the file: it is a way to run at all, not a way to run well.
//
// Chosen: the kernel's netlink interface, which connects devices that outlive the process. Rejected: its ioctls (the device lives in a
// thread of the agent, and dies with it), vhost-user-block (Firecracker cannot save it), and FUSE (another server in the way of every block).
package attach
