package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu"
	"github.com/coveyhq/covey/hostagent/preload"
)

// chooseDriver makes the VMM driver that the configuration asks for, or that works here.
func chooseDriver(ctx context.Context, c Config, boot bootFiles, log *slog.Logger) (vmm.Driver, []string, error) {
	object, err := preload.Build(ctx, filepath.Join(c.StateDir, "preload"))
	if err != nil {
		return nil, nil, err
	}
	accel := vmm.TCG
	if c.Accel == "kvm" {
		accel = vmm.KVM
	}
	d, err := qemu.New(qemu.Config{Preload: object, Accel: accel, Log: log})
	if err != nil {
		return nil, nil, err
	}
	log.Info("VMM driver", "capabilities", d.Capabilities())
	features, err := cpuFeatures(accel)
	return d, features, err
}

// cpuFeatures are those that a guest on this host may use. Emulated processors are the same everywhere: their features are QEMU's.
func cpuFeatures(accel vmm.Accel) ([]string, error) {
	if accel == vmm.TCG {
		return nil, nil
	}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if name, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			list := strings.Fields(flags)
			slices.Sort(list)
			return list, nil
		}
	}
	return nil, fmt.Errorf("/proc/cpuinfo lists no flags")
}

// doctor says what works on this machine.
func doctor(ctx context.Context, c Config, out io.Writer) error {
	return fmt.Errorf("not wired yet")
}
