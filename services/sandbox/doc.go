// Package sandbox is the control plane of sandboxes: what a sandbox is, which states it goes through, and who does the
// work of each step. It knows neither gRPC nor SQL: Store, Hosts, Scheduler and Snapshots are interfaces that the
// packages postgres and peers implement; package rpc serves it.
//
// Vocabulary:
//
//   - A change is one atomic step of the store: rows inserted or compared-and-set on their version, and what becomes of the
//     request that asked for it.
//   - Work is what takes a row out of a state in which it must not stay (PENDING, STARTING, PAUSING, RESUMING, STOPPING).
//     It has an id, and everything needed to continue it is in the row.
//   - A job is work being done by this replica. It holds a lease on its rows and is not bound to the request that
//     began it: a caller who goes away ends his waiting and nothing else.
//   - A chore is what remains to be done outside the database because of a change: drop a snapshot, end a VM.
//
// A scenario: CreateSandbox inserts a PENDING row with a lease and the request, in one change. The job places it, sets it
// STARTING, has the host start it, sets it RUNNING and finishes the request, in one change. If the process dies in between,
// the lease ends, and another replica (or the same one, started again) claims the row and runs the very same job from the
// state it finds: host calls are idempotent by id. A second call with the same request id finds the request and waits
// for its outcome, wherever the job runs.
//
// Design chosen: one path for the first try and for recovery (a job reads its row and repeats its step), every result a
// compare-and-set, so that two replicas doing the same thing are harmless. Rejected: a workflow engine beside the
// database (a second place for the truth), and holding a transaction or an advisory lock during the work (a host call
// takes seconds, and a lock dies with its connection, not with its work).
//
// What a live VM reads lazily must stay: a resumed sandbox keeps its former pause snapshot (BaseSnapshotID), and a
// spawned or forked one keeps the snapshot that it came from (SourceSnapshotID), until the next pause has written headers that
// name the same builds, or until it ends. Rejected: dropping the pause snapshot as soon as the sandbox runs again; the
// registry could then collect builds which that VM, on another host, has not read yet.
package sandbox
