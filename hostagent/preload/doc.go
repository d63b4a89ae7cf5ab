// Package preload builds covey-preload.so, which makes a VMM that maps its guest's memory from a file (QEMU) take that memory
// from Covey's pager.
//
// The object is loaded by LD_PRELOAD and told by the environment (see Env):
//
//   - COVEY_MEM_FD: the image's file, opened read-only and inherited. An open of /proc/self/fd/<that number> is answered with
//     a duplicate of it, whatever access is asked for, so the VMM never has write access to pages that clones share.
//   - COVEY_UFFD_FD: an open /dev/userfaultfd, inherited: the VMM needs no privilege. Not set: the system call.
//   - COVEY_PAGER_SOCKET: where the pager listens.
//
// The first mapping of that file (by device and inode) becomes private, is registered with a new userfaultfd for missing
// pages, and is handed to the pager in Firecracker's handshake. The VMM goes on believing that the memory is shared, so
// QEMU's x-ignore-shared keeps it out of the state file. A further mapping of the file fails with EBUSY.
//
// Chosen: C compiled on the host that runs it, once for each version of the source: the object must fit the host's libc,
// and Covey's own programs need no C compiler to build. Rejected: a patched QEMU (Debian's gets security updates) and a
// binary in the repository (nobody can review it).
package preload
