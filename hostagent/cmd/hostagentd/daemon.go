package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/coveyhq/covey/hostagent/internal/agent"
	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/transfer"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/caller"
)

// version is what hosts say of themselves; set by the linker for releases.
var version = "dev"

// endTime bounds the end of an agent: of its sandboxes, where it is told to destroy them.
const endTime = 60 * time.Second

// Main is one running hostagentd.
type Main struct {
	conf   Config
	lock   *os.File
	daemon *chassis.Daemon
	parts  *hostParts
	host   *machine.Host
	// service is what heartbeats tell of; nil where none are sent.
	service *agent.Service
}

// newMain makes everything and takes back the sandboxes of a former agent; run serves.
func newMain(ctx context.Context, c Config) (_ *Main, err error) {
	m := &Main{conf: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.giveUp(ctx))
		}
	}()
	if m.lock, err = lockDir(c.StateDir); err != nil {
		return nil, err
	}
	relay := agent.NewRelay(func() *machine.Host { return m.host })
	if m.daemon, err = chassis.New(c.Chassis, chassis.WithHostID(c.HostID), chassis.WithRelay(relay), chassis.WithEndless(hostv1.HostService_WatchSandboxes_FullMethodName),
		chassis.WithCallers(callers)); err != nil {
		return nil, err
	}
	if m.parts, err = newParts(ctx, c, m.daemon); err != nil {
		return nil, err
	}
	if m.host, err = newHost(c, m.parts, m.daemon); err != nil {
		return nil, err
	}
	if err := m.host.TakeBack(ctx, m.parts.sweepers()); err != nil {
		return nil, fmt.Errorf("taking back what a former agent had: %w", err)
	}
	// Not before: what runs may be of an image that the catalog does not have any more.
	if err := m.parts.snaps.PrepareImages(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		// One image is no reason to leave all sandboxes alone; who asks for it hears what is wrong.
		m.daemon.Log().Error("not all images can be used", "error", err)
	}
	return m, m.register()
}

// lockDir takes a state directory, which two agents must not share, until the file is closed.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	if err := flock(f); err != nil {
		return nil, errors.Join(fmt.Errorf("state_dir %s: another host agent uses it: %w", dir, err), f.Close())
	}
	return f, nil
}

// lockTime is how long a lock is waited for: one of an agent that was killed is held until the last process that it was starting has ended.
const lockTime = 5 * time.Second

func flock(f *os.File) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) || time.Since(began) > lockTime {
			return err
		}
	}
}

func newHost(c Config, p *hostParts, d *chassis.Daemon) (*machine.Host, error) {
	room, err := c.room()
	if err != nil {
		return nil, err
	}
	return machine.New(machine.Config{
		ID: c.HostID, RunDir: filepath.Join(c.StateDir, "run"), ConsoleDir: filepath.Join(c.StateDir, "console"), JournalDir: filepath.Join(c.StateDir, "journal"),
		SettingsDir: filepath.Join(c.StateDir, "settings"),
		Kernel:      p.boot.kernel(p.driver.Capabilities().Driver), Initrd: p.boot.initrd, Cmdline: p.boot.cmdline, KernelID: p.boot.id,
		Nameservers: c.Network.Nameservers, Capacity: room, Parallel: c.Starts, StartTime: c.StartTime, BusyCPU: c.BusyCPU,
	}, p.machineParts(d), agent.Tracer{Tracer: d.Telemetry().Tracers.Tracer("hostagentd")}, d.Log())
}

// register puts the services on the daemon's server.
func (m *Main) register() error {
	info := agent.Info{ID: m.conf.HostID, Address: m.daemon.Addr, Labels: m.conf.Labels, Zone: m.conf.Zone, Version: version, KernelID: m.parts.boot.id}
	service := agent.NewService(m.host, info, m.daemon.Log())
	hostv1.RegisterHostServiceServer(m.daemon.Server(), service)
	if m.parts.moves != nil {
		hostv1.RegisterPeerServiceServer(m.daemon.Server(), transfer.NewPeerServer(m.parts.snaps, m.daemon.Log()))
	}
	if !m.conf.wantsScheduler() {
		return nil
	}
	m.service = service
	return nil
}

// beat tells every scheduler what the host has.
func (m *Main) beat(ctx context.Context) {
	m.daemon.EachInstance(ctx, caller.Scheduler, func(ctx context.Context, c *grpc.ClientConn) {
		agent.NewHeartbeat(m.service, c, m.daemon.Log()).Run(ctx)
	})
}

// run serves until ctx ends. What goes on beside calls (reaper, heartbeats, uploads) ends after the last call.
func (m *Main) run(ctx context.Context) error {
	beside, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan struct{})
	if err := m.daemon.Listen(); err != nil {
		return errors.Join(err, m.giveUp(ctx))
	}
	go func() {
		defer close(done)
		m.beside(beside)
	}()
	m.daemon.Defer(func() error {
		stop()
		<-done
		return nil
	})
	err := m.daemon.Run(ctx)
	return errors.Join(err, m.close(context.WithoutCancel(ctx)))
}

// beside does what goes on beside calls, until ctx ends.
func (m *Main) beside(ctx context.Context) {
	var tasks []func(context.Context)
	tasks = append(tasks, m.host.Run)
	if m.service != nil {
		tasks = append(tasks, m.beat)
	}
	tasks = append(tasks, m.parts.tasks()...)
	ended := make(chan struct{})
	for _, t := range tasks {
		go func() {
			t(ctx)
			ended <- struct{}{}
		}()
	}
	for range tasks {
		<-ended
	}
}

// giveUp is close for an agent that could not begin to serve: it ends no sandbox that it has taken back, whatever it does when it is stopped.
func (m *Main) giveUp(ctx context.Context) error {
	m.conf.Stop = stopKeep
	return m.close(ctx)
}

// close frees everything in the order in which it depends on each other. VMs live on unless the configuration says otherwise.
func (m *Main) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	var errs []error
	if m.host != nil {
		errs = append(errs, m.host.Close(ctx, m.conf.Stop == stopDestroy))
	}
	if m.parts != nil {
		errs = append(errs, m.parts.close())
	}
	if m.daemon != nil {
		errs = append(errs, m.daemon.Close())
	}
	if m.lock != nil {
		errs = append(errs, m.lock.Close())
	}
	return errors.Join(errs...)
}

// reap ends and removes all that an agent of this configuration has left on the machine. It does what a new agent does when it starts, and
// then what one does that is told to destroy its sandboxes.
func reap(ctx context.Context, c Config, out io.Writer) error {
	if _, err := os.Stat(c.StateDir); errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(out, "%s is not there: nothing to reap\n", c.StateDir)
		return nil
	}
	c.Stop = stopDestroy
	c.Chassis.Consul.Address, c.Chassis.TLS.Mode, c.Chassis.Telemetry.TraceFile = "", chassis.TLSOff, ""
	c.Registry.Enabled = false
	no := false
	c.Scheduler = &no
	c.Network.Warm = 0
	m, err := newMain(ctx, c)
	if err != nil {
		return err
	}
	if err := m.close(ctx); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(c.StateDir), os.RemoveAll(c.MemoryDir))
}
