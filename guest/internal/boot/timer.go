package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

const (
	// nominalMult is what the kernel makes of the timer of an emulated local APIC, which counts at 1 GHz by steps of 16: counts a nanosecond, times
	// 2^32 (mult and shift of /proc/timer_list).
	nominalMult = 1 << 28
	// mostMistaken is how many times slower or faster than it is the timer may be taken for.
	mostMistaken = 2
)

// checkTimer fails where the guest has no timer, or has one that keeps a wrong time by more than can be borne.
//
// The kernel measures the local APIC's timer against the time stamp counter in a tenth of a second while it boots. A host that does not run the
// VM just then makes it measure anything. It may find the "APIC frequency too slow, disabling apic timer": then nothing that waits for a time ever goes
// on, in this guest and in every sandbox that is restored from it; or one that is wrong: then all of them sleep too long. No parameter tells the kernel
// the frequency. So such a boot is given up, and the host boots a template again.
func checkTimer() error {
	list, err := os.ReadFile("/proc/timer_list")
	if err != nil {
		return nil // a kernel that does not tell
	}
	return timerFault(string(list))
}

// timerFault says what is wrong with the first processor's timer by /proc/timer_list. Of timers other than the local APIC's own, like one that has the
// counter's deadline, it is known only that they are there.
func timerFault(list string) error {
	_, own, ok := strings.Cut(list, "\nPer CPU device: 0\nClock Event Device: ")
	if !ok {
		return nil
	}
	name, rest, _ := strings.Cut(own, "\n")
	if name == "<NULL>" {
		return errors.New("the kernel has found no timer that works")
	}
	_, rest, ok = strings.Cut(rest, "\n mult:")
	var mult uint64
	if name != "lapic" || !ok {
		return nil
	}
	if _, err := fmt.Sscan(rest, &mult); err != nil {
		return nil
	}
	if mult < nominalMult/mostMistaken || mult > nominalMult*mostMistaken {
		return fmt.Errorf("the kernel takes the timer for one that runs at %d %% of its speed", mult*100/nominalMult)
	}
	return nil
}
