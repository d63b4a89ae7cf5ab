// Package cpufeature is what scheduler and host agents must agree on about features of processors, by Linux's names for them in /proc/cpuinfo.
package cpufeature

import "slices"

// essential are sorted.
var essential = []string{"apic", "cmov", "cx8", "fpu", "fxsr", "lm", "mmx", "msr", "nx", "pae", "pge", "pse", "sse", "sse2", "syscall", "tsc"}

// Essential are the features without which no x86-64 Linux runs, sorted: no baseline and no host takes them from guests.
func Essential() []string { return slices.Clone(essential) }
