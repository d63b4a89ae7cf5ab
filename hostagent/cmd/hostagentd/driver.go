package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/coveyhq/covey/hostagent/internal/choice"
	"github.com/coveyhq/covey/hostagent/internal/probe"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu"
	"github.com/coveyhq/covey/hostagent/preload"
)

// driver is a VMM driver with the means to let go of its VMs.
type driver interface {
	vmm.Driver
	Close() error
}

// chooseDriver makes the VMM driver that the configuration asks for, or the best that works here.
func chooseDriver(ctx context.Context, c Config, boot bootFiles, log *slog.Logger) (vmm.Driver, error) {
	object, err := preload.Build(ctx, filepath.Join(c.StateDir, "preload"))
	if err != nil {
		return nil, err
	}
	conf := choiceConfig(c, boot, log)
	conf.QEMU.Preload = object
	d, findings, err := choice.Driver(ctx, conf)
	if err != nil {
		return nil, err
	}
	log.Info("VMM driver", "capabilities", d.Capabilities(), "why", choice.Explain(findings))
	return d, nil
}

func choiceConfig(c Config, boot bootFiles, log *slog.Logger) choice.Config {
	return choice.Config{
		Driver: c.Driver, Accel: c.Accel, Vmlinux: boot.vmlinux, BzImage: boot.bzImage, KernelID: boot.id, Dir: filepath.Join(c.StateDir, "probe"),
		UID: c.Jail.UIDBase, GID: c.Jail.UIDBase, Log: log,
		Firecracker: firecracker.Config{Log: log, Mask: c.CPU.Mask}, QEMU: qemu.Config{Log: log, CPU: c.CPU.Model, Mask: c.CPU.Mask},
	}
}

// doctor says what works on this machine, in lines for people; an error where a host agent cannot run.
func doctor(ctx context.Context, c Config, out io.Writer) error {
	conf := probe.DoctorConfig{StateDir: c.StateDir, MemoryDir: c.MemoryDir, UID: c.Jail.UIDBase, GID: c.Jail.UIDBase}
	var boot bootFiles
	if c.Artifacts != "" {
		var err error
		if boot, err = findBootFiles(c.Artifacts); err != nil {
			return err
		}
		conf.Kernel, conf.KernelID = boot.bzImage, boot.id
	}
	list := probe.Doctor(ctx, conf)
	probe.Print(out, list)
	if boot.id != "" {
		if err := explainChoice(ctx, choiceConfig(c, boot, slog.New(slog.DiscardHandler)), out); err != nil {
			return err
		}
	}
	if !probe.Healthy(list) {
		return errors.New("a host agent cannot run here; the lines marked FAIL say why")
	}
	fmt.Fprintln(out, "A host agent can run here.")
	return nil
}

// explainChoice tries the drivers and says which one would be used, and why no other.
func explainChoice(ctx context.Context, conf choice.Config, out io.Writer) error {
	d, findings, err := choice.Driver(ctx, conf)
	for _, f := range findings {
		mark := "  "
		if f.Chosen {
			mark = "->"
		}
		fmt.Fprintf(out, "%s    %s: %s\n", mark, f.Candidate, f.Reason)
	}
	if c, ok := d.(driver); ok {
		err = errors.Join(err, c.Close())
	}
	return err
}
