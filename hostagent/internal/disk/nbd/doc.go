// Package nbd serves block devices by the Network Block Device protocol on Unix sockets.
//
// It speaks the fixed newstyle handshake (EXPORT_NAME, GO, INFO, LIST, ABORT; the only export is "") and then simple replies to
// READ, WRITE, FLUSH, TRIM, WRITE_ZEROES and DISC, with FUA. Numbers are big-endian; the protocol's reference is
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
//
// Vocabulary
//
//   - export: what is served; see Export.
//   - request: one command of a client. Several of a connection are in flight at once, and are answered in any order.
//   - budget: how many bytes the requests in flight of one connection may hold; reading on waits for it.
//
// The client is a VMM, and behind it a guest, and so is not trusted: whatever it sends costs at most its budget, and what is not
// the protocol ends the connection. A request that is legal and out of bounds is answered with an error.
//
// A connection may be cut at any time, by either side: a client sends again what was not answered, and requests mean the same
// when they are done twice.
//
// Chosen: a server of our own, because what is served is layered, lazy and asked for its dirty blocks, and the part of the protocol
// that a VMM speaks is small. Rejected: nbdkit or qemu-nbd beside the agent (another process for each sandbox, which would have to
// ask the agent for every block of a build), and vhost-user-blk (shares the guest's memory with the agent).
package nbd
