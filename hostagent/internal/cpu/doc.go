// Package cpu is the vocabulary of processor features: what a guest can see of its processor and come to depend on.
//
// Vocabulary
//
//   - feature: a bit of CPUID by which software decides what to execute. Its name is Linux's, as in the guest's /proc/cpuinfo: sse4_2, avx512f.
//   - to have: a host has the features that guests on it can see; a guest has those that it does see.
//   - mask: features that a host's guests are not to have though they could.
//   - baseline: the only features that VMs booted from now on may have, so that what is saved of them runs on every host of a pool.
//
// A feature that needs another one is taken away with it: what masks avx masks avx2. Names are those of the table alone; bits that are not
// in it follow from the machine model or from the number of processors, and no program decides by them.
//
// Chosen: one table of names and bits for all VMMs, so that the features of hosts with different ones can be compared, and an operator
// reads the names that he finds in /proc/cpuinfo. Rejected: each VMM's own names (QEMU has up to three for one bit), and levels like
// x86-64-v3 (no host has exactly one of them).
package cpu
