package vmtest

import "time"

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// tscKHz measures the frequency of the host's time stamp counter, which under emulation is the guest's. A guest on a busy
// host fails to measure it by itself and then waits for ever.
func tscKHz() uint64 {
	from, began := rdtsc(), time.Now()
	<-time.After(100 * time.Millisecond)
	to, took := rdtsc(), time.Since(began)
	return (to - from) * uint64(time.Millisecond) / uint64(took)
}
