// Package book is what a scheduler knows at this moment: hosts from their heartbeats, and the room that it has reserved on them.
//
// A host is known from its first heartbeat, lost when it has been silent for too long or its health check fails, and forgotten when it has been lost for very long.
//
// Heartbeats come straight from the host; of the check only Consul's word is known, which may be old: that it could not reach a host before it was cut off
// itself and has not looked again. So the check of a host that beats loses it only once it has failed for as long as silence would take. Of one that is silent
// for half of that time already the check is believed at once: both say the same. Of one that is back after such a silence only what fails from then on counts: the
// check failed because it was away, and Consul has not looked since.
// Rejected: heartbeats alone, as a host that beats but serves nobody would be chosen again and again; the check alone, which lost every host for a moment
// whenever Consul came back; and schedulers that call the hosts themselves, which is Consul's work done again by each of them.
//
// A reservation holds room for one sandbox on one host. It ends when a heartbeat of that host shows the sandbox (whose room the host then counts
// itself), when it is released, when the same sandbox is placed again, or by itself after a while.
//
// A Book is memory only: a scheduler that starts learns all hosts within one interval of heartbeats. Each of several schedulers has a Book of its own, which
// knows nothing of the others' reservations. What they promise twice, the host refuses, and the sandbox is placed again without that host. A reservation is given back through any
// scheduler (see rpc.Schedulers).
//
// The same holds of soft spreading, by which the copies of a fork are kept apart where there is room: each scheduler counts only the sandboxes of a
// key that it has placed itself since its start. With several schedulers, which take requests in turn, copies are spread as well as each one's
// share of them is, and a scheduler that has just started may put the next one beside others. That is a preference that is missed and no promise that is broken. What
// must be apart (anti-affinity) is kept so by the sandboxes' rows, which every request brings along.
//
// Chosen: optimistic schedulers and the host's admission as the last word. Rejected: one leader, or reservations in a shared store, because a placement would
// then cost a consensus write and wait for an election after a crash, only to avoid what hosts must check in any case.
package book
