package tsc

import (
	"testing"
	"time"
)

func TestTheTimeStampCountersFrequencyIsMeasured(t *testing.T) {
	khz := KHz()
	from, at := now()
	<-time.After(100 * time.Millisecond)
	to, end := now()
	again := float64(to-from) / float64(end.Sub(at).Nanoseconds()) * 1e6
	if ratio := float64(khz) / again; ratio < 0.999 || ratio > 1.001 {
		t.Errorf("%d kHz, and %.0f kHz when measured again", khz, again)
	}
	t.Logf("%d kHz", khz)
}
