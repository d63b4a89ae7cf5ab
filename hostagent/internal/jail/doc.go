// Package jail bounds VMM processes: each has a cgroup and an unprivileged user of its own.
//
// Vocabulary
//
//   - cage: the cgroup and the user of one VMM.
//   - record: a file <uid> that says whose a user id is; ids are unique on the machine, whatever agents run on it.
//   - controllers: what the kernel offers to bound processes by: cgroup v1 hierarchies, or v2, or nothing.
//
// One scenario. Make takes a user id that no record has, writes its record and makes the cgroup covey/<agent>/<id>. The launcher puts
// the VMM's pid into the files that Procs names, then becomes the user, then executes the VMM. An agent that was restarted finds the same
// user by Open. Remove kills what is left and gives all back. Sweep does so for cages of an agent that was killed.
//
// # Limits
//
// CPU: the guest's vCPUs, and a fifth of a CPU for the VMM's own threads, without which a guest that computes would slow its own network
// down. Processes: enough for a VMM's threads. Memory: the guest's and a quarter of it, and Config.Overhead for the VMM: QEMU's
// translations alone may take 1 GiB under TCG. That is ample on purpose, as it is there against a VMM gone wild: what sandboxes may take of
// a host is decided at admission. The kernel charges a page to whoever touches it first. Pages of memory images, which lie in
// a tmpfs and cannot be reclaimed, are written by the pager and so charged to the agent, whichever VM needed them first; a VM is charged
// for its private copies and what its VMM allocates.
//
// A machine without usable controllers (a container, mostly) gets users only: then nothing but the admission bounds what a VMM takes.
//
// Chosen: records in files of their own, made by link(2), because they hold without cgroups too and are gone after a reboot as the
// processes are. Rejected: the uid in the cgroup's name (nothing where there are no cgroups), and a range for each agent (agents would have
// to be configured not to collide).
package jail
