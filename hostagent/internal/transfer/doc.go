// Package transfer moves snapshots between this host, the registry and other hosts.
//
// Vocabulary:
//
//   - upload: a snapshot of this host on its way into the registry: registered, every object that the registry lacks sent, committed.
//     From then on it is durable.
//   - mark: a small file that says that nothing is to be uploaded of a snapshot: it is durable, or it came from elsewhere. A snapshot
//     without a mark is on its way, also after the agent has died at any point.
//   - peer: another host that has a snapshot, or some of it.
//   - report: this host's list of what it has, told to the registry once a minute, so that others can read it here and what was deleted
//     goes here too.
//
// Three things are made here. Transfer implements machine.Registry and uploads in the background; Fetcher implements
// snapstore.Fetcher; NewPeerServer serves this host's objects to other hosts.
//
// A scenario. A sandbox is paused: machine calls Register, which tells the registry of the snapshot and puts it into the queue. A
// worker takes it, sends what is missing and commits. The sandbox is resumed on another host: its snapstore asks the Fetcher there,
// which takes a lease and finds the manifest at the registry, with the hosts that have it. Ranges come from those hosts, chosen by a
// hash of object and range so that many readers spread over them; who does not answer or lacks it is left alone for a while; the
// registry is last. What arrives is verified by the snapstore, whoever sent it.
//
// Another scenario: many hosts begin to read one snapshot at once, which no host in reach has. Each is known to the registry by its
// lease, and each answer of the registry to a range names them all. All put themselves into the same order for a unit of a build
// (rendezvous hashing, health.asks), and each asks those before it for a range, to be fetched if need be. So the first fetches it from the registry
// and the others get it there. Who cannot, or does not within a second, is passed over, and in the end the registry is asked by everyone. Being late is no illness: on a host
// that is overrun all are, and if they left each other alone for that, each would read everything from the registry.
//
// Why a host takes a lease on what it fetches: a sandbox that runs here reads a snapshot lazily, and the next snapshot of it names
// the same builds. The control plane drops the old snapshot as soon as the new one is made, perhaps before the registry has heard
// of the new one. The lease keeps the old builds until everything made here is registered.
//
// Design chosen: the registry's answer to a range names the other readers. Where nobody asks the registry it has no load to be spared, and
// where somebody does he knows the others after one answer. Rejected: asking for the manifest more often, because in lockstep hosts differ by
// milliseconds, and what is asked for that often costs more than the ranges do.
//
// Design chosen: a host fetches for those behind it in the order, also what its own VM does not want yet. Rejected: asking the one whose turn it is
// whether he has it, and waiting for that, because a VM may never want it, and all others' would wait in vain. No two hosts wait for each other:
// who is asked to fetch asks only those before it to fetch, in one unit, and whoever is still opening a build asks nobody to.
//
// Design chosen: marks for what is done. Rejected: a list of what is to be done, because a snapshot that was made just before the
// agent died is on no list.
//
// Design chosen: a snapshot that the registry does not know any more is registered again, and removed here only if the registry then says that it
// was deleted. Rejected: removing whatever the registry does not list, because a registry that lost its database would make all
// hosts throw away what it could be rebuilt from.
package transfer
