// Package machine owns the sandboxes of one host: it starts, saves, copies, takes back and ends them.
//
// Vocabulary
//
//   - machine: one sandbox on this host from the moment that it is admitted until it has ended, and an hour longer as a
//     tombstone that says how it ended.
//   - operation: start, snapshot, fork, pause, destroy, or the clearing up after a VM that died. A machine does one at a time.
//   - room: what a machine needs of the host (virtual CPUs, memory, disk, a slot). It is taken from the Ledger before
//     anything is made and given back when the last of it is gone.
//   - holdings: what a machine has of the host: slot, cage (cgroup and user), disk, memory session, VM, guest connection.
//   - template: the snapshot of a stock image right after its first boot, from which its sandboxes are spawned.
//
// One scenario. Host.Start admits a sandbox, makes its holdings step by step (each step pushes its undoing on a stack, each has a
// phase in the receipt) and returns once guestd has answered: RUNNING. Frames of the data plane count as activity; a sandbox
// idle for longer than its timeout is paused by the reaper: no frame, no open stream, no process or lease in the guest that holds the timer, and
// no CPU use above a threshold. Pause stops the VM, saves device state, dirty memory and the
// disk's overlay, ends the VM, and answers once all is safe on the disk: PAUSED. If the agent is killed in between, the next one
// calls TakeBack, which finds the VM by its journal record and goes on.
//
// When operations are legal: Start where there is no machine or a tombstone; Snapshot, Fork and Pause of a RUNNING one;
// Destroy always. The same operation with the same ids joins the one under way, or answers as it did. Everything else is an
// *IllegalError, which names the state and what is legal. An operation goes on when its caller goes away.
//
// Chosen: operations are detached jobs, one at a time for each machine, because a job that outlives its request is the only way to
// never have half a sandbox. Rejected: a mutex held across the operation (a caller that goes away would leave it to nobody, and
// nobody could join), and one queue for the host (a slow pause would hold up a start).
package machine
