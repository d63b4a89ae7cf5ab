// Package network builds and recycles slots: the network place of one sandbox.
//
// Vocabulary
//
//   - slot: a network namespace "cvy<range>-<n>" with a TAP device "tap0" for the guest, one end of a veth pair to the
//     host ("cvy<range>-<n>" outside, "eth0" inside), addresses, and nftables rules (table "covey").
//   - range: 198.18.0.0/15 is cut into /22s, one for each host agent on the machine, taken by flock on /run/covey/net/<n>;
//     every slot has a /30 of it for its veth pair. Guests all have the same inner address, 172.16.0.2, which is
//     masqueraded to the slot's own.
//   - owner: the agent that a range belongs to, by a name that it keeps across restarts: so it finds its slots again.
//   - policy: which addresses a guest may reach.
//
// One scenario. NewPool takes the owner's range, makes the host's nftables table of it ("covey<range>") and begins to build slots.
// Slots that a former agent of the owner had handed out are taken with Adopt, and the others destroyed by Sweep. Acquire takes a
// slot that is ready and gives it its policy; Release destroys it in the background, and another is built in its place. Close destroys
// what is not handed out; if nothing was, neither table nor range nor anything else is left.
//
// A guest reaches the public Internet through two masquerades (slot, host) and nothing else: no other guest, no address
// of the host, no private (RFC 1918), shared (RFC 6598), link-local, loopback or 198.18.0.0/15 range unless its policy
// allows it. What a policy denies wins over what it allows, and that over these ranges; the configured nameservers can be asked
// (port 53) unless they are denied. Another guest cannot be reached whatever the policy says. guestd is reached only by dialling from inside the slot's namespace (Slot.DialGuest): no address outside
// leads to it.
//
// Chosen: slots are built ahead by a Pool and handed out in microseconds; a used slot is scrubbed (conntrack flushed by
// rebuilding the namespace in the background) rather than reset rule by rule: what a guest did to a namespace is then
// gone by construction. Rejected: one bridge for all guests with per-TAP filters (one wrong rule joins tenants), and
// iptables binaries (slow, and parsing their output breaks).
package network
