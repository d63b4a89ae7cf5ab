package cpu

import (
	"os"
	"strings"
)

// Host names the host's processor: vendor, family, model and stepping. Processors of one name are interchangeable for a guest.
func Host() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	return nameOf(string(b))
}

func nameOf(cpuinfo string) string {
	var parts []string
	for line := range strings.Lines(cpuinfo) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "cpu family", "model", "stepping":
			parts = append(parts, strings.TrimSpace(value))
		case "":
			return strings.Join(parts, "-") // the first processor's is enough
		}
	}
	return strings.Join(parts, "-")
}
