// Package files works on the guest's files on behalf of a user.
//
// Vocabulary
//
//   - actor: a user whose permissions an operation has. The guest's kernel decides what it may do: the operation runs on a
//     thread of its own whose effective user, groups and capabilities are the actor's.
//   - path: absolute, or relative to the actor's home; it never climbs above "/" or, if it is relative, above the home.
//     Symbolic links lead wherever the guest's own lead: the virtual machine is the boundary.
//
// The thread keeps root as its real and saved user. So it can return to root and be used again; the actor's processes may
// not signal it; and reading another's /proc entries is refused, which looks at the effective user.
//
// Rejected: a child process for each operation (20 ms and more of start under emulation, for a stat), setfsuid alone (which
// keeps capabilities and the effective user, so that files in /proc would be open to everyone), and checking permission bits
// here (never what the kernel would say).
package files
