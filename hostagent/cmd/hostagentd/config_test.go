package main

import (
	"strings"
	"testing"
)

func TestWhatGuestsSeeOfTheProcessorIsConfiguredByFeaturesThatThereAre(t *testing.T) {
	for _, x := range []struct {
		cpu  CPUConfig
		want string
	}{
		{CPUConfig{Mask: []string{"sse4_2", "avx512f"}, Model: "Skylake-Server-v4"}, ""},
		{CPUConfig{Mask: []string{"sse4.2"}}, `cpu.mask: must be features by their names in /proc/cpuinfo, like sse4_2 or avx512f, got "sse4.2"`},
		{CPUConfig{Mask: []string{"sse2"}}, "cpu.mask: must leave what no guest runs without"},
		{CPUConfig{Model: "host,+avx"}, "cpu.model: must be the name of one of QEMU's processors"},
	} {
		c := Config{CPU: x.cpu}
		err := c.Validate() // which finds more to say
		if says := err != nil && strings.Contains(err.Error(), "cpu."); says != (x.want != "") || err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: %v, want %q", x.cpu, err, x.want)
		}
	}
}
