// Package baseline remembers the CPU baselines of pools of hosts, for all schedulers and over their restarts: as keys in Consul. Without
// Consul they are a scheduler's own memory, and the hosts' who keep what they were told.
//
// Vocabulary
//
//   - pool: the hosts with a label, key=value; the empty label is all hosts.
//   - baseline: the only CPU features that guests booted in a pool may have, so that their snapshots run on every host of it.
//   - generation: of all baselines, the time of the last change in milliseconds, always growing. A host takes no news older than what it
//     knows: schedulers hear of a change at different times.
//
// A host in several pools has the features that all their baselines leave. What was lifted is remembered as such, because it has a generation.
//
// Chosen: schedulers answer heartbeats with the baseline, and hosts keep it on their disks: it holds when no scheduler is there, and reaches
// hosts that come later. Rejected: hosts that read Consul themselves (another dependency of the hosts, which run without it), and the
// narrowest of what all hosts have as the baseline at all times (a new poor host would change what all others boot, unasked).
//
// A change is a compare-and-set on the pool's key. Chosen: who finds that another scheduler was first learns what that one has set and puts its own on top,
// because a request says all that a baseline is to be, and either order of two is a right one; what matters is that all schedulers and hosts agree on it.
// Rejected: refusing the second, which an operator would only repeat; and a lock in Consul, which must be waited for when its holder dies.
package baseline
