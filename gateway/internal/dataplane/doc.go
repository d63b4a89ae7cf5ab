// Package dataplane finds the host of a sandbox and calls it: exec, files and console go from the gateway straight to the host agent.
//
// A location is asked of the sandbox service and kept. It may be stale: a host that no longer has the sandbox says so (SANDBOX_NOT_HERE), or cannot be
// reached at all; the location is then asked for again, which resumes a paused sandbox that has auto_resume set, and the call is made once more. Only
// calls that provably never reached a guest are repeated.
//
// A host that is cut off says nothing at all, and a call to it would wait until its connection is found dead. So before a call goes where a location says, the
// host must have answered within the last second: one small question (health), asked once for all calls, and before anything of the call is sent. If it does not
// answer, the location is asked for again. A call that changes where a sandbox is, and passes here, has its location forgotten.
//
// Rejected: locations that live for a second alone, because each sandbox in use would then ask the sandbox service all the time; hosts are fewer. Rejected:
// following the events of all tenants, which each gateway would do for sandboxes that it never hears of.
//
// Hosts.Resolve serves native gRPC calls, through the chassis's relay. Conn serves REST: it is a grpc.ClientConnInterface that picks the host by
// the sandbox_id of a call's first message. A call with a stream of requests has its location asked for afresh, because it cannot be repeated.
package dataplane
