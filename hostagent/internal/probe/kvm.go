package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// KVMConfig says how KVM is judged.
type KVMConfig struct {
	// Driver makes a driver that uses KVM. If it has a method Close, that is called in the end.
	Driver func() (vmm.Driver, error)
	// DriverID names the VMM and its version, KernelID the kernel's content. A verdict for others does not count.
	DriverID, KernelID string
	// Kernel is the guest's kernel, as the driver takes it.
	Kernel string
	// Dir is where the verdict is kept. It is made if missing.
	Dir string
	// UID and GID that the VMM runs as.
	UID, GID int
	// Deadline of the trial. Default 5 s; with KVM it takes less than one.
	Deadline time.Duration
	// Fresh asks for a new trial, whatever an earlier one showed.
	Fresh bool
	// Device is KVM's. Default /dev/kvm.
	Device string
	Log    *slog.Logger
}

// Verdict is what was found.
type Verdict struct {
	// Works: VMs boot with KVM here.
	Works bool `json:"works"`
	// Reason is a sentence, for people.
	Reason string `json:"reason"`
	// Cached: an earlier trial showed it.
	Cached bool `json:"-"`
}

// Accel is what VMs are to be run with.
func (v Verdict) Accel() vmm.Accel {
	if v.Works {
		return vmm.KVM
	}
	return vmm.TCG
}

// record is the file that keeps a verdict.
type record struct {
	BootID   string  `json:"boot_id"`
	KernelID string  `json:"kernel_id"`
	DriverID string  `json:"driver_id"`
	Verdict  Verdict `json:"verdict"`
}

// KVM judges whether KVM runs the guest's kernel. An error means that it could not be judged, and KVM should not be used.
func KVM(ctx context.Context, conf KVMConfig) (Verdict, error) {
	if conf.Deadline == 0 {
		conf.Deadline = 5 * time.Second
	}
	if conf.Device == "" {
		conf.Device = "/dev/kvm"
	}
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	if reason := device(conf.Device); reason != "" {
		return Verdict{Reason: reason}, nil
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Verdict{}, fmt.Errorf("probe: %w", err)
	}
	if err := os.MkdirAll(conf.Dir, 0o755); err != nil {
		return Verdict{}, fmt.Errorf("probe: %w", err)
	}
	now := record{BootID: strings.TrimSpace(string(id)), KernelID: conf.KernelID, DriverID: conf.DriverID}
	path := filepath.Join(conf.Dir, "kvm.json")
	if had, ok := load(path, now, conf.Log); ok && !conf.Fresh {
		had.Cached = true
		return had, nil
	}
	if now.Verdict, err = trial(ctx, conf); err != nil {
		return Verdict{}, fmt.Errorf("probe: %w", err)
	}
	conf.Log.Info("KVM was tried", "works", now.Verdict.Works, "reason", now.Verdict.Reason)
	return now.Verdict, store(path, now)
}

// load finds an earlier verdict that still holds.
func load(path string, now record, log *slog.Logger) (Verdict, bool) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Verdict{}, false
	}
	var had record
	if err == nil {
		err = json.Unmarshal(b, &had)
	}
	if err != nil {
		log.Warn("the last verdict on KVM cannot be read", "error", err)
		return Verdict{}, false
	}
	holds := had.BootID == now.BootID && had.KernelID == now.KernelID && had.DriverID == now.DriverID
	return had.Verdict, holds
}

// store need not be durable: the verdict is worth nothing after the host's end.
func store(path string, r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := fmt.Sprintf("%s.%d.tmp", path, os.Getpid())
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Ioctls of linux/kvm.h.
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
	kvmAPIVersion    = 12
)

// device says what is wrong with KVM's device already, "" if nothing.
func device(path string) string {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return path + " is not there: the processor's virtualisation is switched off, or this is a VM or container that does not have it"
	case err != nil:
		return fmt.Sprintf("%s cannot be opened: %v", path, err)
	}
	defer unix.Close(fd)
	if v, err := unix.IoctlRetInt(fd, kvmGetAPIVersion); err != nil || v != kvmAPIVersion {
		return fmt.Sprintf("%s is not the KVM that is known: its API has version %d, want %d (%v)", path, v, kvmAPIVersion, err)
	}
	vm, err := unix.IoctlRetInt(fd, kvmCreateVM)
	if err != nil {
		return fmt.Sprintf("%s is there but makes no VM: %v", path, err)
	}
	unix.Close(vm)
	return ""
}

const (
	// reached is what a kernel without a root file system prints last.
	reached     = "VFS: Unable to mount root fs"
	trialMemory = 256 << 20
)

// trial boots the kernel and judges by its console.
func trial(ctx context.Context, conf KVMConfig) (Verdict, error) {
	dir, err := os.MkdirTemp(conf.Dir, "trial-")
	if err != nil {
		return Verdict{}, err
	}
	defer os.RemoveAll(dir)
	d, err := conf.Driver()
	if err != nil {
		return Verdict{Reason: fmt.Sprintf("the VMM cannot be used: %v", err)}, nil
	}
	if c, ok := d.(interface{ Close() error }); ok {
		defer c.Close()
	}
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o755); err != nil {
		return Verdict{}, err
	}
	console := filepath.Join(dir, "console")
	deadline, cancel := context.WithTimeout(ctx, conf.Deadline)
	defer cancel()
	begin := time.Now()
	vm, err := d.Boot(deadline, vmm.Config{
		ID: "probe", RunDir: run, VCPUs: 1, MemoryBytes: trialMemory, Kernel: conf.Kernel, Cmdline: "panic=-1 root=/dev/covey-probe",
		ConsolePath: console, UID: conf.UID, GID: conf.GID,
	})
	if ctx.Err() != nil {
		return Verdict{}, errors.Join(context.Cause(ctx), end(vm))
	}
	if err != nil && deadline.Err() != nil {
		err = fmt.Errorf("it did not start within %v: %w", conf.Deadline, err)
	}
	if err != nil {
		return judge(conf.Device, console, err.Error(), time.Since(begin)), nil
	}
	reason := ""
	select {
	case <-vm.Done():
		reason = vm.Exit().Reason
	case <-deadline.Done():
		reason = fmt.Sprintf("it did not get anywhere within %v", conf.Deadline)
	}
	took := time.Since(begin)
	if err := errors.Join(context.Cause(ctx), end(vm)); err != nil {
		return Verdict{}, err
	}
	return judge(conf.Device, console, reason, took), nil
}

// end ends a trial's VM, if there is one.
func end(vm vmm.VM) error {
	if vm == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return vm.Kill(ctx)
}

// judge reads the console. Everything on it is a line for people, of which only the marker decides.
func judge(device, path, reason string, took time.Duration) Verdict {
	b, err := os.ReadFile(path)
	if err != nil {
		return Verdict{Reason: fmt.Sprintf("a trial boot failed: %s", reason)}
	}
	if strings.Contains(string(b), reached) {
		return Verdict{Works: true, Reason: fmt.Sprintf("the guest's kernel boots, in %v", took.Round(10*time.Millisecond))}
	}
	last := "nothing"
	if line := lastLine(string(b)); line != "" {
		last = fmt.Sprintf("%q", line)
	}
	return Verdict{Reason: fmt.Sprintf("%s is there, but the guest's kernel does not boot: %s; the last line of its console: %s", device, reason, last)}
}

var control = regexp.MustCompile(`\x1b\[[0-9;]*[A-Za-z]|\x1bc|[^\x20-\x7e]`)

func lastLine(s string) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	for i := len(lines) - 1; i >= 0; i-- {
		if line := strings.TrimSpace(control.ReplaceAllString(lines[i], "")); line != "" {
			return line[:min(len(line), 200)]
		}
	}
	return ""
}
