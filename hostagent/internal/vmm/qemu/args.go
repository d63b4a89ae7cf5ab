package qemu

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coveyhq/covey/guest/tsc"

	"github.com/coveyhq/covey/hostagent/preload"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// descriptors are the numbers, in QEMU's process, of what it inherits. -1: not there.
type descriptors struct{ control, console, memory, userfaultfd, disk, tap int }

// tbSize is the most memory that TCG's translations take, MiB; when it is full they are thrown away. A boot and a Python
// program need about 30.
const tbSize = 128

// arguments is QEMU's command line. Boot and restore differ in kernel and -incoming alone: whatever makes a device must be the same.
func (d *Driver) arguments(cfg *vmm.Config, cpu vmm.CPU, fds descriptors, restore bool) []string {
	a := []string{
		"-name", escape(cfg.ID) + ",debug-threads=on",
		"-M", "microvm,acpi=on,rtc=on,mem-merge=off,dump-guest-core=off" + memoryBackend(cfg),
		"-accel", d.accel(cfg), "-cpu", cpu.Model,
		"-smp", strconv.Itoa(cfg.VCPUs), "-m", strconv.FormatInt(cfg.MemoryBytes>>20, 10) + "M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", fmt.Sprintf("socket,id=control,fd=%d,server=on,wait=off", fds.control), "-mon", "chardev=control,mode=control",
		"-add-fd", fmt.Sprintf("fd=%d,set=1", fds.console),
		"-chardev", "file,id=console,path=/dev/fdset/1,append=on", "-serial", "chardev:console",
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng",
	}
	if cfg.PagerSocket != "" {
		a = append(a, "-object", fmt.Sprintf("memory-backend-file,id=mem,size=%d,mem-path=%s,share=on,dump=off,merge=off",
			cfg.MemoryBytes, preload.MemPath(fds.memory)))
	}
	a = append(a, disk(cfg, fds)...)
	if cfg.TapName != "" {
		a = append(a, "-netdev", fmt.Sprintf("tap,id=net,fd=%d", fds.tap), "-device", "virtio-net-device,netdev=net,guest_announce=off,mac="+escape(cfg.MAC))
	}
	if restore {
		return append(a, "-incoming", "defer")
	}
	a = append(a, "-kernel", cfg.Kernel, "-append", d.cmdline(cfg))
	if cfg.Initrd != "" {
		a = append(a, "-initrd", cfg.Initrd)
	}
	return a
}

func memoryBackend(cfg *vmm.Config) string {
	if cfg.PagerSocket == "" {
		return ""
	}
	return ",memory-backend=mem"
}

func (d *Driver) accel(cfg *vmm.Config) string {
	if d.conf.Accel == vmm.KVM {
		return "kvm"
	}
	thread := "single"
	if cfg.VCPUs > 1 {
		thread = "multi"
	}
	return fmt.Sprintf("tcg,thread=%s,tb-size=%d", thread, tbSize)
}

// disk attaches the disk. Errors go to the guest: nobody would start a VM again that QEMU had stopped for them.
func disk(cfg *vmm.Config, fds descriptors) []string {
	var node string
	switch {
	case cfg.DiskSocket != "":
		node = "driver=nbd,server.type=unix,server.path=" + escape(cfg.DiskSocket) + ",reconnect-delay=60"
	case cfg.DiskPath != "":
		node = "driver=file,filename=/dev/fdset/2,locking=off"
	default:
		return nil
	}
	var a []string
	if cfg.DiskPath != "" {
		a = append(a, "-add-fd", fmt.Sprintf("fd=%d,set=2", fds.disk))
	}
	return append(a, "-blockdev", node+",node-name=disk,discard=unmap",
		"-device", "virtio-blk-device,drive=disk,physical_block_size=4096,rerror=report,werror=report")
}

// cmdline puts the driver's parameters first, so that the caller's win.
func (d *Driver) cmdline(cfg *vmm.Config) string {
	own := "console=ttyS0 reboot=t panic=-1 "
	if d.conf.Accel == vmm.TCG {
		own += fmt.Sprintf("no_timer_check tsc=reliable tsc_early_khz=%d ", tsc.KHz())
	}
	return strings.TrimSpace(own + cfg.Cmdline)
}

// escape makes s a value in one of QEMU's lists of options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// controlSocket is where QMP is, for a VM with that directory.
func controlSocket(runDir string) string { return filepath.Join(runDir, "qmp.sock") }
