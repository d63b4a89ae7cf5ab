package vmm

import (
	"strings"
	"testing"
)

func TestAConfigurationIsRefusedWithTheFieldAndWhatIsLegal(t *testing.T) {
	good := Config{VCPUs: 2, MemoryBytes: 16 << 20, DiskPath: "/disk", TapName: "tap0", MAC: "06:00:AC:10:00:02", RunDir: "/run", ConsolePath: "/console"}
	if err := good.Check(2); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"VCPUs: must be 1 to 2, got 3":                          func(c *Config) { c.VCPUs = 3 },
		"VCPUs: must be 1 to 2, got 0":                          func(c *Config) { c.VCPUs = 0 },
		"MemoryBytes: must be a multiple of 1 MiB and at least": func(c *Config) { c.MemoryBytes++ },
		"at least 16 MiB, got 15728640":                         func(c *Config) { c.MemoryBytes -= 1 << 20 },
		"DiskSocket, DiskPath: only one of them":                func(c *Config) { c.DiskSocket = "/socket" },
		`TapName, MAC: go together, got "tap0" and ""`:          func(c *Config) { c.MAC = "" },
		`TapName, MAC: go together, got "" and`:                 func(c *Config) { c.TapName = "" },
		`RunDir: must be an absolute path, got "run"`:           func(c *Config) { c.RunDir = "run" },
		`ConsolePath: must be an absolute path, got ""`:         func(c *Config) { c.ConsolePath = "" },
	} {
		c := good
		change(&c)
		if err := c.Check(2); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it says %v, want %q", err, want)
		}
	}
}
