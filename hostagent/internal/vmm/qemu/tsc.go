package qemu

import (
	"sync"
	"time"
)

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// tscKHz is the frequency of the host's time stamp counter, kHz, measured once, in 50 ms, to a few parts in a million.
//
// Under TCG a guest's counter runs as the host's does, and the microvm machine has no other clock that a kernel could measure it
// against but the PIT. A kernel which fails at that, because the host is busy, waits for timer interrupts that never come. So it is told.
var tscKHz = sync.OnceValue(func() uint64 {
	const span = 50 * time.Millisecond
	from, fromTime := tscNow()
	<-time.After(span)
	to, toTime := tscNow()
	return (to - from) * uint64(time.Millisecond) / uint64(toTime.Sub(fromTime))
})

// tscNow reads the counter and the clock at the same instant, as nearly as it gets in several tries.
func tscNow() (counter uint64, at time.Time) {
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
