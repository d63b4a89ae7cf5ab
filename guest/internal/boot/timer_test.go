package boot

import (
	"fmt"
	"strings"
	"testing"
)

// timerList is what a kernel writes of a guest's timers, shortened.
func timerList(device string) string {
	return "Timer List Version: v0.9\nHRTIMER_MAX_CLOCK_BASES: 8\n\nTick Device: mode:     0\nBroadcast device\nClock Event Device: <NULL>\n" +
		"tick_broadcast_mask: 0\n\nTick Device: mode:     0\nPer CPU device: 0\nClock Event Device: " + device + "\n"
}

func lapic(mult int) string {
	return timerList(fmt.Sprintf("lapic\n max_delta_ns:   31839572533\n min_delta_ns:   1000\n mult:           %d\n shift:          32", mult))
}

func TestABootWithoutATimerOrWithAMistakenOneIsGivenUp(t *testing.T) {
	for list, want := range map[string]string{
		timerList("<NULL>"): "no timer", lapic(1 << 28): "", lapic(289682659): "", lapic(1<<29 + 8): "200 %", lapic(1 << 20): "0 %",
		timerList("lapic-deadline\n mult:           11150288\n shift:          32"): "", "": "", timerList("lapic"): "",
	} {
		err := timerFault(list)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", list[max(0, len(list)-80):], err, want)
		}
	}
}
