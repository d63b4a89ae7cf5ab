package vmm

import (
	"errors"
	"fmt"
	"path/filepath"
)

// Check says all that no driver takes in a configuration, each with its field and what is legal. A driver runs so many virtual CPUs at most.
func (c *Config) Check(maxVCPUs int) error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, BadField(field, format, args...))
	}
	if c.VCPUs < 1 || c.VCPUs > maxVCPUs {
		bad("VCPUs", "must be 1 to %d, got %d", maxVCPUs, c.VCPUs)
	}
	if c.MemoryBytes < 16<<20 || c.MemoryBytes%(1<<20) != 0 {
		bad("MemoryBytes", "must be a multiple of 1 MiB and at least 16 MiB, got %d", c.MemoryBytes)
	}
	if c.DiskSocket != "" && c.DiskPath != "" {
		bad("DiskSocket, DiskPath", "only one of them can be the disk")
	}
	if (c.TapName == "") != (c.MAC == "") {
		bad("TapName, MAC", "go together, got %q and %q", c.TapName, c.MAC)
	}
	for field, path := range map[string]string{"RunDir": c.RunDir, "ConsolePath": c.ConsolePath} {
		if !filepath.IsAbs(path) {
			bad(field, "must be an absolute path, got %q", path)
		}
	}
	return errors.Join(errs...)
}

// BadField is the error of one field of a configuration; it says what is legal and what was there.
func BadField(field, format string, args ...any) error {
	return fmt.Errorf(field+": "+format, args...)
}
