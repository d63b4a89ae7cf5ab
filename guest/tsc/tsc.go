// Package tsc measures the host's time stamp counter for the guests that are told its frequency (tsc_early_khz on the kernel's command line).
//
// Under emulation a guest's counter runs as the host's does, and the microvm machine has no other clock that a kernel could measure it
// against but the PIT. A kernel which fails at that, because the host is busy, waits for timer interrupts that never come. So it is told.
//
// Chosen: to measure it. Rejected: "cpu MHz" of /proc/cpuinfo, which on many machines is the frequency that a core runs at just now.
package tsc

import (
	"sync"
	"time"
)

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// KHz is the frequency of the host's time stamp counter, kHz, measured once, in 50 ms, to a few parts in a million.
var KHz = sync.OnceValue(func() uint64 {
	const span = 50 * time.Millisecond
	from, fromTime := now()
	<-time.After(span)
	to, toTime := now()
	return (to - from) * uint64(time.Millisecond) / uint64(toTime.Sub(fromTime))
})

// now reads the counter and the clock at the same instant, as nearly as it gets in several tries.
func now() (counter uint64, at time.Time) {
	best := time.Duration(1<<63 - 1)
	for range 16 {
		before := time.Now()
		c := rdtsc()
		if d := time.Since(before); d < best {
			best, counter, at = d, c, before.Add(d/2)
		}
	}
	return counter, at
}
