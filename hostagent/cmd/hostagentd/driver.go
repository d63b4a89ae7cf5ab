package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coveyhq/covey/hostagent/internal/probe"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu"
	"github.com/coveyhq/covey/hostagent/preload"
)

// chooseDriver makes the VMM driver that the configuration asks for, or the best that works here, and says which features of the
// processor its guests may use.
func chooseDriver(ctx context.Context, c Config, boot bootFiles, log *slog.Logger) (vmm.Driver, []string, error) {
	object, err := preload.Build(ctx, filepath.Join(c.StateDir, "preload"))
	if err != nil {
		return nil, nil, err
	}
	accel := vmm.Accel(c.Accel)
	if c.Accel == "auto" {
		v, err := probe.KVM(ctx, probe.ForQEMU(kvmConfig(c, boot, log)))
		if err != nil {
			log.Warn("KVM could not be tried and is not used", "error", err)
		}
		log.Info("accelerator", "accel", v.Accel(), "reason", v.Reason)
		accel = v.Accel()
	}
	d, err := qemu.New(qemu.Config{Preload: object, Accel: accel, Log: log})
	if err != nil {
		return nil, nil, err
	}
	log.Info("VMM driver", "capabilities", d.Capabilities())
	features, err := cpuFeatures(accel)
	return d, features, err
}

func kvmConfig(c Config, boot bootFiles, log *slog.Logger) probe.KVMConfig {
	return probe.KVMConfig{Kernel: boot.kernel, KernelID: boot.id, Dir: filepath.Join(c.StateDir, "probe"), UID: c.Jail.UIDBase, GID: c.Jail.UIDBase, Log: log}
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
	return nil, errors.New("/proc/cpuinfo lists no flags")
}

// doctor says what works on this machine, in lines for people; an error where a host agent cannot run.
func doctor(ctx context.Context, c Config, out io.Writer) error {
	conf := probe.DoctorConfig{StateDir: c.StateDir, MemoryDir: c.MemoryDir, UID: c.Jail.UIDBase, GID: c.Jail.UIDBase}
	if c.Artifacts != "" {
		boot, err := findBootFiles(c.Artifacts)
		if err != nil {
			return err
		}
		conf.Kernel, conf.KernelID = boot.kernel, boot.id
	}
	list := probe.Doctor(ctx, conf)
	probe.Print(out, list)
	if !probe.Healthy(list) {
		return errors.New("a host agent cannot run here; the lines marked FAIL say why")
	}
	fmt.Fprintln(out, "A host agent can run here.")
	return nil
}
