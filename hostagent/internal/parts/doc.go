// Package parts fits the host agent's real parts (pager, disks) to what package machine and package snapstore ask of them, where those do not
// already speak machine's words. Nothing is decided here.
//
// Chosen: adapters in a package of their own. Rejected: pager and disk importing machine, because they would then know of sandboxes, which they
// have no need to; and snapstore importing them, because a snapshot is then no longer testable without userfaultfd and NBD.
package parts
