// Package registry keeps snapshots beyond the host that made them: which there are, whose they are, which objects they consist
// of, and where the bytes of those are. It knows neither gRPC nor SQL nor S3: Index and Store are interfaces that the packages
// postgres and store implement; package rpc serves it.
//
// Vocabulary:
//
//   - object: an immutable run of bytes with a key, like "builds/<build id>" or "snapshots/<snapshot id>/state".
//   - reference: a snapshot names an object. A build is named by every snapshot whose headers lead to it.
//   - path: where one incarnation of an object lies in the store. A path is made with the object's row and never used again, so
//     that whatever is late (an upload, a deletion) can only touch what it meant.
//   - lease: what keeps a snapshot from being deleted, held by a sandbox that may still read it or by a host that has it open.
//   - durable: every object of the snapshot is in the store, whole and checked.
//   - retired: deleted, but kept until its leases have ended; nobody finds it any more.
//
// A scenario. A host has paused a sandbox. It registers the snapshot: row, references and the rows of objects not known yet
// come into being in one transaction, so from here on nothing that the snapshot names can be collected. It uploads what is
// not stored yet, each object from where an earlier try ended, and commits: every object is checked to be there, and the snapshot is
// durable. Another host reads the manifest, takes a lease and reads ranges of objects. The sandbox is paused again: the new
// snapshot names the old one's builds too. The old one is dropped, and with its row its references go. The collector finds the
// objects that nothing names any more, forgets their rows (the paths are now garbage, in the same transaction) and deletes
// the bytes at those paths.
//
// Design chosen: collection by reference, decided by the database under row locks. A registration locks the object rows that it
// names before it refers to them, and the collector deletes a row only after it has locked it and then seen that nothing refers
// to it; whichever comes second sees the other's result. Rejected: mark and sweep over headers in the store (it must stop
// uploads or guess a grace time), and counters in object rows (a crash between two steps makes them wrong for ever).
//
// Design chosen: a path for each incarnation of an object. Rejected: the key as path, because a deletion that is under way would
// then hit the bytes of a registration that came meanwhile.
//
// Tenants: a user's calls see his tenant's snapshots alone; anything else is not found, whether it exists or not. A host's calls
// may come without a tenant, as it is given ids by the control plane.
package registry
