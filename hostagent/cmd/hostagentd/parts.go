package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/coveyhq/covey/hostagent/internal/agent"
	"github.com/coveyhq/covey/hostagent/internal/disk"
	"github.com/coveyhq/covey/hostagent/internal/image"
	"github.com/coveyhq/covey/hostagent/internal/jail"
	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/network"
	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/parts"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
	"github.com/coveyhq/covey/hostagent/internal/transfer"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/caller"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
)

// hostParts is what sandboxes are made of on this host.
type hostParts struct {
	boot   bootFiles
	driver vmm.Driver
	slots  *network.Pool
	cages  *jail.Jail
	disks  *disk.Store
	memory *pager.Cache
	snaps  *snapstore.Store
	// moves and directory are nil without a registry.
	moves     *transfer.Transfer
	directory *transfer.Directory
}

// bootFiles is what a guest is booted from, as guest-build has described it.
type bootFiles struct{ bzImage, vmlinux, initrd, cmdline, id string }

// kernel is the file that a driver boots.
func (b bootFiles) kernel(driver string) string {
	if driver == firecracker.Name {
		return b.vmlinux
	}
	return b.bzImage
}

func findBootFiles(dir string) (bootFiles, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "artifacts.json"))
	if err != nil {
		return bootFiles{}, fmt.Errorf("artifacts: %w\nwhat to do: make them with guest-build -out %s", err, dir)
	}
	type file struct {
		Path string `json:"path"`
	}
	var a struct {
		KernelID  string `json:"kernel_id"`
		Cmdline   string `json:"cmdline"`
		BzImage   file   `json:"bzimage"`
		Vmlinux   file   `json:"vmlinux"`
		Initramfs file   `json:"initramfs"`
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return bootFiles{}, fmt.Errorf("artifacts: %s/artifacts.json: %w", dir, err)
	}
	b := bootFiles{filepath.Join(dir, a.BzImage.Path), filepath.Join(dir, a.Vmlinux.Path), filepath.Join(dir, a.Initramfs.Path), a.Cmdline, a.KernelID}
	for _, f := range []*string{&b.bzImage, &b.vmlinux, &b.initrd} {
		// VMMs are shown these files alone, so links to them will not do.
		if *f, err = filepath.EvalSymlinks(*f); err != nil {
			return bootFiles{}, fmt.Errorf("artifacts: %w", err)
		}
	}
	return b, nil
}

// newParts makes everything, in the order in which it depends on each other.
func newParts(ctx context.Context, c Config, d *chassis.Daemon) (_ *hostParts, err error) {
	p := &hostParts{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.boot, err = findBootFiles(c.Artifacts); err != nil {
		return nil, err
	}
	if p.driver, err = chooseDriver(ctx, c, p.boot, d.Log()); err != nil {
		return nil, err
	}
	if err := p.furnish(ctx, c, d); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *hostParts) furnish(ctx context.Context, c Config, d *chassis.Daemon) (err error) {
	var nameservers []netip.Addr
	for _, s := range c.Network.Nameservers {
		nameservers = append(nameservers, netip.MustParseAddr(s)) // Validate has parsed them.
	}
	log := d.Log()
	if p.cages, err = jail.New(jail.Config{Owner: c.StateDir, UIDBase: c.Jail.UIDBase, Log: log}); err != nil {
		return err
	}
	if p.slots, err = network.NewPool(ctx, network.Config{Owner: c.StateDir, Warm: c.Network.Warm, Max: c.Capacity.Slots, Nameservers: nameservers, Log: log}); err != nil {
		return err
	}
	if p.disks, err = disk.NewStore(filepath.Join(c.StateDir, "overlay"), log); err != nil {
		return err
	}
	if p.memory, err = pager.NewCache(pager.Config{Dir: c.MemoryDir, LimitBytes: c.Snapshot.CacheMB << 20, Log: log}); err != nil {
		return err
	}
	images, err := image.NewCatalog(c.Artifacts)
	if err != nil {
		return err
	}
	conf := snapstore.Config{Dir: filepath.Join(c.StateDir, "snapshots"), Images: images, MaxChain: c.Snapshot.MaxChain, Removed: p.memory.Drop, Log: log}
	if c.Registry.Enabled {
		if err := p.meetRegistry(c, d); err != nil {
			return err
		}
		conf.Fetcher, conf.Healed = p.moves.Fetcher(), p.moves.Healed
		conf.Removed = func(id string) {
			p.memory.Drop(id)
			p.moves.Removed(id)
		}
	}
	if p.snaps, err = snapstore.New(conf); err == nil && p.moves != nil {
		p.moves.Attach(p.snaps)
	}
	return err
}

// meetRegistry prepares what moves snapshots between this host, the registry and other hosts.
func (p *hostParts) meetRegistry(c Config, d *chassis.Daemon) error {
	conn, err := d.Dial(caller.Snapshot)
	if err != nil {
		return err
	}
	p.directory = transfer.NewDirectory(d.Watch, d.DialAddr)
	p.moves, err = transfer.New(transfer.Config{
		HostID: c.HostID, Dir: filepath.Join(c.StateDir, "transfer"), Registry: conn, Peers: p.directory,
		Meter: d.Telemetry().Meters.Meter("transfer"), Log: d.Log(),
	})
	return err
}

// machineParts is what package machine is given.
func (p *hostParts) machineParts(d *chassis.Daemon) machine.Parts {
	m := machine.Parts{
		Driver: p.driver, Slots: p.slots, Cages: p.cages, Disks: parts.Disks{Store: p.disks}, Memories: parts.Memories{Cache: p.memory, Private: p.driver.Capabilities().PrivateMapping},
		Snapshots: p.snaps, Guests: agent.Guests{Options: []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(d.Telemetry().Tracers)))}},
	}
	if p.moves != nil {
		m.Registry = p.moves
	}
	return m
}

// sweepers remove what a former agent has left. What is in a cage is ended first: it may use everything else.
func (p *hostParts) sweepers() []machine.Sweeper {
	return []machine.Sweeper{
		{Kind: "VMMs and cgroups", Sweep: func(_ context.Context, keep machine.Keep) ([]string, error) { return p.cages.Sweep(keep.IDs) }},
		{Kind: "network slots", Sweep: func(ctx context.Context, keep machine.Keep) ([]string, error) { return p.slots.Sweep(ctx, keep.Slots) }},
		{Kind: "overlays", Sweep: func(_ context.Context, keep machine.Keep) ([]string, error) { return p.disks.Sweep(keep.IDs) }},
		{Kind: "memory images", Sweep: func(context.Context, machine.Keep) ([]string, error) { p.memory.Sweep(); return nil, nil }},
	}
}

// tasks go on beside calls.
func (p *hostParts) tasks() []func(context.Context) {
	if p.moves == nil {
		return nil
	}
	return []func(context.Context){p.directory.Run, p.moves.Run}
}

// close lets go of everything; what sandboxes have stays.
func (p *hostParts) close() error {
	var errs []error
	if d, ok := p.driver.(driver); ok {
		errs = append(errs, d.Close())
	}
	if p.snaps != nil {
		errs = append(errs, p.snaps.Close())
	}
	if p.memory != nil {
		errs = append(errs, p.memory.Close())
	}
	if p.slots != nil {
		errs = append(errs, p.slots.Close())
	}
	if p.cages != nil {
		errs = append(errs, p.cages.Close())
	}
	return errors.Join(errs...)
}
