// Package plan decides which host a sandbox goes to, and explains it. It is the scheduler's pure core: no clock, no network, no goroutine.
//
// A Fleet is what is known of all hosts. At one moment it is a View, which nothing here changes: Choose and Explain read a View and a Request and
// return what they found. A host fits a request if it passes every filter; a score orders those that fit.
//
//   - Filters: the host is ready (not lost, cordoned or draining), is the one asked for and none that refused, has the labels, the driver, the machine model and the
//     CPU features that the snapshot needs, has no sandbox that this one must be apart from (anti-affinity), and has room in every resource.
//   - Scores: the snapshot's data is there already; how loaded the host would be in its scarcest resource; whether CPU and memory would be used up evenly,
//     so that neither is left over without the other; and above all, for requests with a spread key, how few of the same key are there and in its zone.
//
// # How a host is chosen among thousands
//
// Hosts that pass the filters on what rarely changes (labels, features, driver) are kept as a list for each combination that requests have, a class. Of that
// list a few are looked at, at random, and of the snapshot's holders a few; the best that fits is taken. Only if none fits is the list scanned, from a
// random place on, until a few fit. So the cost does not grow with the fleet while there is room, and nothing is allocated. In a fleet of at most
// ScanAll hosts all are looked at, and the choice is the best.
//
// Chosen: the power of a few choices, which comes close to the least loaded host (the bench "scheduler" says how close) and lets many schedulers work from slightly old
// views without all running for the same host. Rejected: the best of all hosts, which costs a scan, or an index by load that each placement and heartbeat changes.
//
// The rows of a Fleet are columns of plain values, so that a scan reads memory in order. A host keeps its row, its index, as long as it is known.
package plan
