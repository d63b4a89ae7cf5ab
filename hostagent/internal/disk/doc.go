// Package disk makes the disks of sandboxes: a base that is never written, a local overlay that takes the writes, and a server that
// the VMM attaches to.
//
// Vocabulary
//
//   - base: what the disk held when the sandbox was started; read lazily, from wherever its builds are.
//   - block: 4 KiB; what the overlay keeps account of.
//   - overlay: all that was written since, in layers. Each layer has two files, <id>.<n>.data (sparse, as large as the disk) and
//     <id>.<n>.map (one byte for each block: not in this layer, in its data, or zero). A block is what the highest layer that has
//     it says; what no layer has is the base's.
//   - top: the highest layer, the only one that is written.
//   - frozen: the disk as it was at one instant, held for a snapshot while the VM goes on writing.
//
// One scenario. Store.Create makes an empty layer over the base and serves the disk over NBD on a Unix socket. The guest writes into
// the top. For a snapshot the VM is stopped, and Freeze puts a new, empty top over the old one, which costs the same
// however much was written; the VM goes on. The snapshot reads Frozen.Ranges and their bytes, and calls Release. A layer that
// nothing holds frozen any more is merged into the one below it in the background, so that two are left. If the agent is killed, the
// layers lie in files, and the next one calls Reopen: the VMM connects again and repeats what was not answered. Discard ends it all.
//
// # What survives what
//
// Data is written before its map byte, both into the kernel's page cache, and only then is the guest answered: so whatever was
// answered survives the death of the agent at any instant. Nothing is synced, not even when the guest flushes: the overlay of a
// running sandbox is of use only while its VM lives, and both end with the host's kernel. What must survive that is in snapshots.
// A merge copies down and then removes the upper layer, whose blocks hide those below them until then; it can be cut anywhere.
//
// # Errors
//
// A base that cannot be read (a build is missing or damaged) is logged and the guest sees an I/O error; a full file system it sees as
// "no space". Map files have their space reserved when they are made, because a page of a mapped file that finds no space is a
// SIGBUS.
//
// Chosen: a map of bytes as the account of what was written, because a discard of a block that the base has must be told from a
// block never written. Rejected: SEEK_DATA on a sparse file (cannot tell them, and file systems round extents), qcow2 (the agent
// would parse its tables to learn which blocks changed, and a snapshot would have to reopen it in the VMM), and copying the
// changed blocks while the VM stands still (its pause would grow with what it wrote).
package disk
