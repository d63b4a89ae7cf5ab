package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
	"github.com/coveyhq/covey/hostagent/internal/vmm/launch"
	"github.com/coveyhq/covey/hostagent/internal/vmm/statefile"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
)

// layoutVersion is raised whenever devices or the layout below change in a way that keeps older states from loading.
const layoutVersion = 1

// The layout of the room: the same for every VM, on every host.
const (
	roomBinary = "/firecracker"
	roomDir    = "/vm" // the VM's own directory, the only one that it writes to
	roomDisk   = "/disk"
	roomKernel = "/kernel"
	roomInitrd = "/initrd"
	roomPager  = "/pager" // the directory of the pager's socket
)

// Names within the VM's own directory.
const (
	apiName     = "api.sock"
	consoleName = "console"
	logName     = "log"
	metricsName = "metrics"
	stateName   = "state"
	spoolName   = "memory"
)

// Names of devices in requests; they go into states.
const (
	driveID = "disk"
	ifaceID = "eth0"
)

// ownDir is the directory that is bound at roomDir.
func ownDir(cfg *vmm.Config) string { return filepath.Join(cfg.RunDir, "vm") }

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	v, err := d.start(ctx, cfg, d.cpus.boot(cfg.Baseline), nil)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	if err := v.configure(ctx); err != nil {
		v.Discard()
		return nil, fmt.Errorf("boot: %w", err)
	}
	return v, nil
}

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, cfg vmm.Config, statePath string) (vmm.VM, error) {
	state, cpu, err := d.openState(statePath, &cfg)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	v, err := d.start(ctx, cfg, cpu, state)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	if err := v.load(ctx); err != nil {
		v.Discard()
		return nil, fmt.Errorf("restore: %w", err)
	}
	return v, nil
}

// start starts Firecracker, with nothing configured. A state is for a VM that is to load it.
func (d *Driver) start(ctx context.Context, cfg vmm.Config, cpu vmm.CPU, state []byte) (_ *VM, err error) {
	if err := d.check(&cfg, state != nil); err != nil {
		return nil, err
	}
	if err := launch.Resolve(&cfg.Kernel, &cfg.Initrd); err != nil {
		return nil, err
	}
	if err := makeOwnDir(&cfg, state); err != nil {
		return nil, err
	}
	v := d.newVM(cfg, cpu)
	defer func() {
		if err != nil {
			v.abandon()
		}
	}()
	if err := v.openPipes(); err != nil {
		return nil, err
	}
	if v.disk, err = d.attach(ctx, &cfg); err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	spec, err := d.spec(&cfg, v.disk, state != nil)
	if err != nil {
		return nil, err
	}
	stdout, err := openPipe(filepath.Join(ownDir(&cfg), consoleName))
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	spec.Stdout = stdout
	proc, err := launch.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	v.hold(proc)
	return v, v.connect(ctx)
}

// makeOwnDir makes the VM's directory anew.
func makeOwnDir(cfg *vmm.Config, state []byte) error {
	dir := ownDir(cfg)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{consoleName, logName, metricsName} {
		if err := unix.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			return fmt.Errorf("FIFO %s: %w", name, err)
		}
		if err := os.Chown(filepath.Join(dir, name), cfg.UID, cfg.GID); err != nil {
			return err
		}
	}
	if state != nil {
		path := filepath.Join(dir, stateName)
		if err := os.WriteFile(path, state, 0o600); err != nil {
			return err
		}
		if err := os.Chown(path, cfg.UID, cfg.GID); err != nil {
			return err
		}
	}
	return os.Chown(dir, cfg.UID, cfg.GID)
}

func (d *Driver) attach(ctx context.Context, cfg *vmm.Config) (Disk, error) {
	switch {
	case cfg.DiskSocket != "":
		return d.conf.Disks.Attach(ctx, d.attachment(cfg))
	case cfg.DiskPath != "":
		return pathDisk(cfg.DiskPath), launch.Resolve(&cfg.DiskPath)
	}
	return nil, nil
}

func (d *Driver) attachment(cfg *vmm.Config) Attachment {
	return Attachment{ID: cfg.ID, Socket: cfg.DiskSocket, Dir: cfg.RunDir, UID: cfg.UID, GID: cfg.GID}
}

// spec says what to run, and what it may see.
func (d *Driver) spec(cfg *vmm.Config, disk Disk, restore bool) (launch.Spec, error) {
	maxFile, err := maxFile(cfg, disk)
	if err != nil {
		return launch.Spec{}, err
	}
	spec := launch.Spec{
		Path: roomBinary, UID: cfg.UID, GID: cfg.GID, NetNS: cfg.NetNS, Cgroups: cfg.CgroupProcs, RoomAt: cfg.RunDir, MaxFile: maxFile,
		Args: []string{
			"--api-sock", filepath.Join(roomDir, apiName), "--id", instanceID(cfg.ID), "--level", "Warning", "--show-level",
			"--log-path", filepath.Join(roomDir, logName), "--metrics-path", filepath.Join(roomDir, metricsName),
		},
		Binds: append(launch.System(), launch.Bind{Path: ownDir(cfg), At: roomDir, Writable: true}),
	}
	add := func(path, at string, writable bool) {
		spec.Binds = append(spec.Binds, launch.Bind{Path: path, At: at, Writable: writable})
	}
	if disk != nil {
		add(disk.Path(), roomDisk, true)
	}
	if cfg.PagerSocket != "" {
		add(filepath.Dir(cfg.PagerSocket), roomPager, false)
	}
	if cfg.Kernel != "" && !restore {
		add(cfg.Kernel, roomKernel, false)
	}
	if cfg.Initrd != "" && !restore {
		add(cfg.Initrd, roomInitrd, false)
	}
	if d.conf.Jailer != "" {
		d.jail(&spec, cfg)
		return spec, nil
	}
	add(d.conf.Binary, roomBinary, false)
	for _, device := range []string{"/dev/kvm", "/dev/urandom", "/dev/userfaultfd", "/dev/net/tun"} {
		if device != "/dev/net/tun" || cfg.TapName != "" {
			spec.Binds = append(spec.Binds, launch.Bind{Path: device, Optional: true})
		}
	}
	return spec, nil
}

// jail has the jailer run what the spec says: the room moves to where the jailer will make it the root.
func (d *Driver) jail(spec *launch.Spec, cfg *vmm.Config) {
	const base, jailer = "/jail", "/jailer"
	root := filepath.Join(base, filepath.Base(roomBinary), instanceID(cfg.ID), "root")
	for i, b := range spec.Binds {
		if b.At == "" {
			b.At = b.Path
		}
		spec.Binds[i].At = filepath.Join(root, b.At)
	}
	spec.Binds = append(spec.Binds, launch.System()...)
	spec.Binds = append(spec.Binds, launch.Bind{Path: d.conf.Jailer, At: jailer}, launch.Bind{Path: d.conf.Binary, At: roomBinary},
		// Where the jailer finds the number of /dev/userfaultfd.
		launch.Bind{Path: "/proc/misc"})
	args := []string{
		"--id", instanceID(cfg.ID), "--exec-file", roomBinary, "--uid", strconv.Itoa(cfg.UID), "--gid", strconv.Itoa(cfg.GID),
		"--chroot-base-dir", base, "--resource-limit", fmt.Sprintf("fsize=%d", spec.MaxFile), "--",
	}
	for i := 0; i < len(spec.Args); i++ {
		if spec.Args[i] == "--id" {
			i++ // the jailer says it
			continue
		}
		args = append(args, spec.Args[i])
	}
	spec.Path, spec.Args, spec.UID, spec.GID, spec.MaxFile, spec.Jailer = jailer, args, 0, 0, 0, true
}

// maxFile is how large the files that Firecracker writes may become: the spool has the memory's size, a disk may be a file.
func maxFile(cfg *vmm.Config, disk Disk) (int64, error) {
	size := cfg.MemoryBytes + statefile.MaxBody
	if disk == nil {
		return size, nil
	}
	st, err := os.Stat(disk.Path())
	if err != nil {
		return 0, fmt.Errorf("disk: %w", err)
	}
	return max(size, st.Size()), nil
}

// instanceID makes an id of the letters that Firecracker allows.
func instanceID(id string) string {
	id = strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, id)
	if id == "" {
		return "vm"
	}
	return id[:min(len(id), 64)]
}

// configure makes the machine and starts the guest.
func (v *VM) configure(ctx context.Context) error {
	cfg := &v.cfg
	requests := []request{
		{"PUT", "/machine-config", api.MachineConfig{VCPUCount: cfg.VCPUs, MemSizeMiB: cfg.MemoryBytes >> 20, TrackDirtyPages: true}},
		{"PUT", "/boot-source", bootSource(cfg)},
		{"PUT", "/entropy", api.EntropyDevice{}},
	}
	if len(v.cpu.Masked) > 0 {
		requests = append(requests, request{"PUT", "/cpu-config", template(v.cpu.Masked)})
	}
	if v.disk != nil {
		requests = append(requests, request{"PUT", "/drives/" + driveID, api.Drive{DriveID: driveID, PathOnHost: roomDisk, CacheType: api.Writeback}})
	}
	if cfg.TapName != "" {
		requests = append(requests, request{"PUT", "/network-interfaces/" + ifaceID,
			api.NetworkInterface{IfaceID: ifaceID, HostDevName: cfg.TapName, GuestMAC: cfg.MAC}})
	}
	if v.driver.conf.Balloon {
		requests = append(requests, request{"PUT", "/balloon", api.Balloon{DeflateOnOOM: true}})
	}
	for _, r := range append(requests, request{"PUT", "/actions", api.Action{ActionType: api.InstanceStart}}) {
		if err := v.do(ctx, r, nil); err != nil {
			return err
		}
	}
	return nil
}

func bootSource(cfg *vmm.Config) api.BootSource {
	b := api.BootSource{KernelImagePath: roomKernel, BootArgs: cmdline(cfg)}
	if cfg.Initrd != "" {
		b.InitrdPath = roomInitrd
	}
	return b
}

// cmdline puts the driver's parameters first, so that the caller's win. There is a keyboard controller, for reboots alone, and no PCI.
func cmdline(cfg *vmm.Config) string {
	return strings.TrimSpace("console=ttyS0 8250.nr_uarts=1 reboot=k panic=-1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd " + cfg.Cmdline)
}

// load has Firecracker load the state that lies in its directory.
func (v *VM) load(ctx context.Context) error {
	body := api.SnapshotLoad{
		SnapshotPath: filepath.Join(roomDir, stateName),
		MemBackend:   api.MemoryBackend{BackendType: api.Uffd, BackendPath: filepath.Join(roomPager, filepath.Base(v.cfg.PagerSocket))},
	}
	rel := v.driver.version.release
	if rel.trackOnLoad {
		body.TrackDirtyPages = true
	} else {
		body.EnableDiff = true
	}
	if v.cfg.TapName != "" && rel.overrides {
		body.NetworkOverrides = []api.NetworkOverride{{IfaceID: ifaceID, HostDevName: v.cfg.TapName}}
	}
	err := v.do(ctx, request{"PUT", "/snapshot/load", body}, nil)
	if refusal := (*api.Refusal)(nil); errors.As(err, &refusal) && isUnfit(refusal.Message) {
		err = fmt.Errorf("%w: %w", vmm.ErrIncompatible, err)
	}
	return errors.Join(err, removeIfThere(filepath.Join(ownDir(&v.cfg), stateName)))
}

// isUnfit tells from a refusal to load whether the state is the reason, and not what surrounds the VM.
func isUnfit(message string) bool {
	for _, part := range []string{"snapshot state from file", "Invalid snapshot", "format version", "CRC", "deserializ", "sanity check"} {
		if strings.Contains(message, part) {
			return true
		}
	}
	return false
}

// Reopen implements vmm.Driver. The VM goes on, whether this succeeds or not.
func (d *Driver) Reopen(ctx context.Context, cfg vmm.Config, h vmm.Handle) (_ vmm.VM, err error) {
	proc, err := tether.Reopen(Name, h)
	if err != nil {
		return nil, fmt.Errorf("reopen: %w", err)
	}
	cpu := d.cpus.former()
	if cfg.CPU != nil {
		cpu = *cfg.CPU
	}
	v := d.newVM(cfg, cpu)
	v.hold(proc)
	defer func() {
		if err != nil {
			v.LetGo()
			err = fmt.Errorf("reopen: %w", err)
		}
	}()
	if err := v.openPipes(); err != nil {
		return nil, err
	}
	switch {
	case cfg.DiskSocket != "" && d.conf.Disks == nil:
		return nil, fmt.Errorf("DiskSocket: this driver was made without a way to attach NBD, %w", vmm.ErrUnsupported)
	case cfg.DiskSocket != "":
		if v.disk, err = d.conf.Disks.Reattach(ctx, d.attachment(&cfg)); err != nil {
			return nil, fmt.Errorf("disk: %w", err)
		}
	case cfg.DiskPath != "":
		v.disk = pathDisk(cfg.DiskPath)
	}
	if err := v.connect(ctx); err != nil {
		return nil, err
	}
	if err := v.do(ctx, request{method: "GET", path: "/"}, &api.InstanceInfo{}); err != nil {
		return nil, err
	}
	return v, nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
