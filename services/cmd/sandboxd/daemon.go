package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/grpc/metadata"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/tenant"
	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/peers"
	"github.com/coveyhq/covey/services/sandbox/postgres"
	"github.com/coveyhq/covey/services/sandbox/rpc"
)

// scopesKey is the metadata in which the gateway says what the caller's key may do, separated by commas.
const scopesKey = "covey-scopes"

// keyIDKey is the metadata in which it says which key that is.
const keyIDKey = "covey-key-id"

// defaultLease is how long a replica's silence lasts until others take its work up.
const defaultLease = 15 * time.Second

// Main is one running sandboxd.
type Main struct {
	daemon  *chassis.Daemon
	store   *postgres.Store
	service *sandbox.Service
}

func migrateSchema(ctx context.Context, c Config) error {
	if err := postgres.Migrate(ctx, c.Database.DSN); err != nil {
		return fmt.Errorf("migrating the database: %w", err)
	}
	return nil
}

// newMain makes everything and listens to nothing yet. run must be called, which also releases it.
func newMain(ctx context.Context, c Config) (_ *Main, err error) {
	if c.Timing.Lease == 0 {
		c.Timing.Lease = defaultLease
	}
	if err := migrateSchema(ctx, c); err != nil {
		return nil, err
	}
	d, err := chassis.New(c.Chassis, chassis.WithCallers(callers), chassis.WithEndless(sandboxv1.SandboxService_WatchSandboxes_FullMethodName))
	if err != nil {
		return nil, err
	}
	m := &Main{daemon: d}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	owner := "sandboxd-" + ulid.Make().String()
	if m.store, err = postgres.Open(ctx, c.Database, owner, c.Timing.Lease, d.Log()); err != nil {
		return nil, err
	}
	keys := sandbox.NewKeys(m.store)
	if err := bootstrap(ctx, m.store, keys, c.BootstrapAPIKeyFile); err != nil {
		return nil, err
	}
	if m.service, err = newService(d, m.store, c, owner); err != nil {
		return nil, err
	}
	rpc.Register(d.Server(), rpc.Config{
		Service: m.service, Keys: keys, Log: d.Log(), Tenant: tenant.From, Admin: isAdmin, KeyID: keyID, RequestID: tenant.RequestID, Audit: m.store,
	})
	return m, nil
}

func newService(d *chassis.Daemon, store *postgres.Store, c Config, owner string) (*sandbox.Service, error) {
	scheduler, err := d.Dial(caller.Scheduler)
	if err != nil {
		return nil, err
	}
	snapshots, err := d.Dial(caller.Snapshot)
	if err != nil {
		return nil, err
	}
	s := peers.NewScheduler(scheduler)
	return sandbox.New(sandbox.Config{
		Store: store, Hosts: peers.NewHosts(d.DialAddr, s), Scheduler: s, Snapshots: peers.NewSnapshots(snapshots, tenant.With),
		Images: c.Images, Log: d.Log(), Owner: owner, Timing: c.Timing, Quota: c.Quota, Tenant: tenant.With,
	}), nil
}

// isAdmin tells whether the gateway found the admin scope.
func isAdmin(ctx context.Context) bool {
	for _, v := range metadata.ValueFromIncomingContext(ctx, scopesKey) {
		if slices.Contains(strings.Split(v, ","), sandbox.ScopeAdmin) {
			return true
		}
	}
	return false
}

// keyID is the id of the API key that the gateway found.
func keyID(ctx context.Context) string {
	return strings.Join(metadata.ValueFromIncomingContext(ctx, keyIDKey), "")
}

// run serves until ctx ends. Calls are drained first, with their work going on; then the work is left to others.
func (m *Main) run(ctx context.Context) error {
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	go func() { done <- m.service.Run(working) }()
	m.daemon.Defer(func() error {
		stop()
		return <-done
	})
	return errors.Join(m.daemon.Run(ctx), m.close())
}

func (m *Main) close() error {
	err := m.daemon.Close()
	if m.store != nil {
		m.store.Close()
	}
	return err
}
