// Package tether is a driver's hold on one VMM process: it asks the VMM in bounded time, sees its end, and lets go of it alive.
//
// Vocabulary
//
//   - tether: the hold on one process. It is begun when the process has been started or reopened, is watched from when there is a connection to
//     the VMM, and ends when the process has ended or is let go.
//   - connection: the control socket's, QMP or Firecracker's API; it belongs to the tether from Watch on.
//   - let go: to hold a process no longer, which lives on; a later agent reopens it.
//   - fleet: the tethers that a driver watches, so that it can let go of all.
//
// Scenario: a driver starts a process and makes its tether with New. It dials the VMM and puts the dial's failure in words with Explain, or
// calls Watch. From then on its operations run in Alone, one at a time, and each question to the VMM in Ask. When the process ends, the
// driver's Ended frees what belonged to it, Exit gets its reason, and Done is closed; who waits for the VMM meanwhile gets
// vmm.ErrGone. When the agent ends instead, Fleet.Close lets go of all.
//
// When each call is legal: Watch once; Go between Watch and the first of Fleet.Close, Discard and LetGo; everything else always.
//
// Chosen: the process's pidfd decides whether a VMM has ended; that a connection closes only announces it. Rejected: to take a closed
// connection for the end (a VMM can close it and go on), and polling for the PID (which another process may have by then).
package tether
