// Package relay passes calls of the data plane through a daemon without decoding them: the gateway and the host agent put it on their servers
// for the services that they do not serve themselves (chassis.WithRelay).
//
// A call is handled so: the first frame is read raw, and field 1 of its message, the sandbox's id, is the only thing that is ever parsed; resolve
// finds a connection for that sandbox; frames are then copied both ways, one at a time, so that the slower side's flow control reaches the faster
// one and a body of any size uses constant memory. Half-close, cancellation, deadline, headers, trailers and the status with its details pass through.
//
// A caller may work from a stale location. If the far end answers NOT_FOUND with reason SANDBOX_NOT_HERE, or cannot be reached at all, before
// anything came back, the relay resolves once more with refresh set and sends again what it had sent. For that it keeps the first frame, and at
// most 64 KiB of those after it, until the far end's first sign of life. A call that had sent more gets the error.
//
// Credentials of the caller (authorization, cookie, x-api-key) end here: what is behind the relay is untrusted code. Tenant and request id are
// those of the context, not those of the caller's metadata.
//
// # Design
//
// Chosen: one codec on the whole server that lets frames through raw and gives everything else to proto, so that other services on the server work as
// ever. Rejected: replacing the codec named "proto" in gRPC's registry, which would change every connection of the process; and a reverse proxy on HTTP/2
// below gRPC, which would need its own flow control, deadlines and telemetry.
package relay
