// Package launch starts VMM processes, caged, and watches them until they end.
//
// Vocabulary
//
//   - spec: what to run and what it may have.
//   - room: the private root directory of a process: a read-only tmpfs with nothing in it but what the spec binds into it.
//   - process: a VMM process, started by this agent or by a former one.
//   - last words: what it wrote to standard output and error. They are kept in a sealed memfd of 64 KiB: writing never waits,
//     a flood takes no more room, and the next agent finds them through /proc.
//
// A process has its own user, its own mount, PID, IPC, UTS and network namespaces, its own session, no capabilities and no way
// to gain any (an empty bounding set, no_new_privs), and stands in its cgroups before it executes its first instruction. It has
// no /proc, and no file but those that were bound or inherited. It outlives the agent: nothing ties it to its parent, and
// a later agent opens it again by PID and start time, which together are never used twice until the next boot.
//
// How. All of this except the user is an attribute of a thread in Linux, and fork inherits it: so Start makes one thread that
// takes on the cage, forks from it, and lets the thread die. The kernel's clone does the rest (session, user, PID namespace,
// cgroup of version 2).
//
// Chosen: that, because it starts a process in under 2 ms, and every step that fails is named in an ordinary error. Rejected:
// a re-executed shim (the agent is a large program, and starting it twice costs more than the restore of a VM), raw clone with
// code that must not touch Go's runtime (unreadable), and runc or unshare(1) (a second program to find, to watch and to parse).
//
// Limits (RLIMIT_*) belong to a process and not to a thread, and changing those of another user's process takes a capability that
// agents in containers lack. So where a spec has one, a shell in the cage sets it, which costs half a millisecond.
package launch
