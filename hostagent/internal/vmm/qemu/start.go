package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/launch"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
	"github.com/coveyhq/covey/hostagent/preload"
)

// maxFile is how large the files that QEMU writes can become, in bytes.
const maxFile = 16 << 20

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	v, err := d.start(ctx, cfg, d.cpus.boot(cfg.Baseline), false)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	if err := v.Cont(ctx); err != nil {
		v.Discard()
		return nil, fmt.Errorf("boot: %w", err)
	}
	return v, nil
}

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, cfg vmm.Config, statePath string) (vmm.VM, error) {
	if cfg.PagerSocket == "" {
		return nil, fmt.Errorf("restore: %w without a pager", vmm.ErrUnsupported)
	}
	state, cpu, err := d.openState(statePath, &cfg)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	defer state.Close()
	v, err := d.start(ctx, cfg, cpu, true)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	if err := v.load(ctx, state); err != nil {
		v.Discard()
		return nil, fmt.Errorf("restore: %w", err)
	}
	return v, nil
}

// start starts QEMU and returns the VM stopped.
func (d *Driver) start(ctx context.Context, cfg vmm.Config, cpu vmm.CPU, restore bool) (*VM, error) {
	if err := d.check(&cfg); err != nil {
		return nil, err
	}
	if err := launch.Resolve(&cfg.Kernel, &cfg.Initrd); err != nil {
		return nil, err
	}
	f := &files{}
	defer f.close()
	spec, err := d.spec(&cfg, cpu, f, restore)
	if err != nil {
		return nil, err
	}
	proc, err := launch.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	// With QEMU's copy the only one, the socket is refused as soon as QEMU ends.
	f.close()
	v := d.newVM(cfg, cpu, proc, controlSocket(cfg.RunDir), f.consoleStart)
	if err = v.connect(ctx); err == nil {
		err = v.prepare(ctx)
	}
	if err != nil {
		v.Discard()
		return nil, err
	}
	return v, nil
}

// files are what QEMU is to inherit, in order, and what must be closed once it has.
type files struct {
	list    []*os.File
	closing []func() error
	// consoleStart is the console's size before this VM wrote to it.
	consoleStart int64
}

// add returns the number that f will have. A file of the caller's is not closed.
func (f *files) add(file *os.File, callers bool) int {
	f.list = append(f.list, file)
	if !callers {
		f.closing = append(f.closing, file.Close)
	}
	return launch.FirstFile + len(f.list) - 1
}

func (f *files) close() {
	for _, c := range f.closing {
		c()
	}
	f.closing = nil
}

func (d *Driver) spec(cfg *vmm.Config, cpu vmm.CPU, f *files, restore bool) (launch.Spec, error) {
	fds := descriptors{control: -1, console: -1, memory: -1, userfaultfd: -1, disk: -1, tap: -1}
	spec := launch.Spec{
		Path: d.conf.Binary, UID: cfg.UID, GID: cfg.GID, NetNS: cfg.NetNS, TAP: cfg.TapName,
		Cgroups: cfg.CgroupProcs, RoomAt: cfg.RunDir, Binds: d.binds(cfg, restore),
	}
	var err error
	if fds.control, err = f.listen(controlSocket(cfg.RunDir)); err != nil {
		return spec, fmt.Errorf("control socket: %w", err)
	}
	if fds.console, err = f.console(cfg.ConsolePath); err != nil {
		return spec, fmt.Errorf("console: %w", err)
	}
	if cfg.PagerSocket != "" {
		fds.memory = f.add(cfg.Memory, true)
		fds.userfaultfd = f.add(d.userfaultfd, true)
		spec.Env = preload.Env(d.conf.Preload, fds.memory, fds.userfaultfd, cfg.PagerSocket)
	}
	if cfg.DiskPath == "" {
		spec.MaxFile = maxFile
	} else {
		disk, err := os.OpenFile(cfg.DiskPath, os.O_RDWR, 0)
		if err != nil {
			return spec, fmt.Errorf("disk: %w", err)
		}
		fds.disk = f.add(disk, false)
	}
	if d.conf.Accel == vmm.KVM {
		spec.Devices = []string{"/dev/kvm"}
	}
	spec.Files = f.list
	if cfg.TapName != "" {
		fds.tap = spec.TAPFile()
	}
	spec.Args = d.arguments(cfg, cpu, fds, restore)
	return spec, nil
}

// binds are the paths that QEMU sees. Sockets are bound by their directories: a new agent makes new ones. None can be written to, its
// own directory included: what a VMM could put there in place of a socket, the next agent would meet as root.
func (d *Driver) binds(cfg *vmm.Config, restore bool) []launch.Bind {
	list := append(launch.System(), launch.Bind{Path: d.conf.Binary}, launch.Bind{Path: cfg.RunDir})
	if cfg.PagerSocket != "" {
		list = append(list, launch.Bind{Path: d.conf.Preload}, launch.Bind{Path: filepath.Dir(cfg.PagerSocket)})
	}
	if cfg.DiskSocket != "" {
		list = append(list, launch.Bind{Path: filepath.Dir(cfg.DiskSocket)})
	}
	if restore {
		return list
	}
	list = append(list, launch.Bind{Path: cfg.Kernel})
	if cfg.Initrd != "" {
		list = append(list, launch.Bind{Path: cfg.Initrd})
	}
	return list
}

// Reopen implements vmm.Driver. The VM goes on, whether this succeeds or not.
func (d *Driver) Reopen(ctx context.Context, cfg vmm.Config, h vmm.Handle) (vmm.VM, error) {
	proc, err := tether.Reopen(Name, h)
	if err != nil {
		return nil, fmt.Errorf("reopen: %w", err)
	}
	cpu := d.cpus.former()
	if cfg.CPU != nil {
		cpu = *cfg.CPU
	}
	v := d.newVM(cfg, cpu, proc, h.Control, 0)
	v.unsettled = true
	if err := v.connect(ctx); err != nil {
		v.LetGo()
		return nil, fmt.Errorf("reopen: %w", err)
	}
	return v, nil
}

// listen makes the control socket.
func (f *files) listen(path string) (int, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return -1, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return -1, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return -1, err
	}
	file, err := l.File()
	if err != nil {
		return -1, err
	}
	return f.add(file, false), nil
}

func (f *files) console(path string) (int, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return -1, err
	}
	n := f.add(file, false)
	st, err := file.Stat()
	if err != nil {
		return -1, err
	}
	f.consoleStart = st.Size()
	return n, nil
}
