// Package agent is the host agent's face to the mesh: it serves covey.host.v1, passes the data plane through to guestd, and tells
// the scheduler what the host has. What happens to sandboxes is decided in package machine; here it is only translated.
//
// The data plane (ProcessService, FileService) goes through chassis/relay: of a call only the sandbox's id is read. A sandbox that
// is not here, or is here only as a tombstone, is answered NOT_FOUND with reason SANDBOX_NOT_HERE, on which a caller with a stale
// location asks again; one that is here and does not run now is FAILED_PRECONDITION with its state.
//
// Chosen: heartbeats carry the whole state each time, every two seconds and at each change. Rejected: increments, which need an order and
// a resync, for a message of a few kilobytes.
package agent
