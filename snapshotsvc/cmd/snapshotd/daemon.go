package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/tenant"
	"github.com/coveyhq/covey/snapshotsvc/postgres"
	"github.com/coveyhq/covey/snapshotsvc/registry"
	"github.com/coveyhq/covey/snapshotsvc/rpc"
)

// Main is one running snapshotd.
type Main struct {
	daemon  *chassis.Daemon
	index   *postgres.Index
	service *registry.Service
}

func migrateSchema(ctx context.Context, c Config) error {
	if err := postgres.Migrate(ctx, c.Database.DSN); err != nil {
		return fmt.Errorf("migrating the database: %w", err)
	}
	return nil
}

// newMain makes everything and listens to nothing yet. run must be called, which also releases it.
func newMain(ctx context.Context, c Config) (_ *Main, err error) {
	if err := migrateSchema(ctx, c); err != nil {
		return nil, err
	}
	objects, err := c.Store.open(ctx)
	if err != nil {
		return nil, err
	}
	d, err := chassis.New(c.Chassis, chassis.WithCallers(callers))
	if err != nil {
		return nil, err
	}
	m := &Main{daemon: d}
	if m.index, err = postgres.Open(ctx, c.Database); err != nil {
		return nil, errors.Join(err, m.close())
	}
	m.service = registry.New(registry.Config{
		Index: m.index, Store: objects, Log: d.Log(), Quota: c.Quota, Quotas: c.Quotas, Collect: c.Collect, Sweep: c.Sweep,
	})
	rpc.Register(d.Server(), rpc.Config{Registry: m.service, Log: d.Log(), Tenant: tenant.Lookup, DefaultTenant: tenant.Default})
	return m, nil
}

// run serves until ctx ends. Garbage is collected until the last call has ended.
func (m *Main) run(ctx context.Context) error {
	collecting, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	go func() { done <- m.service.Run(collecting) }()
	err := m.daemon.Run(ctx)
	stop()
	return errors.Join(err, <-done, m.close())
}

func (m *Main) close() error {
	if m.index != nil {
		m.index.Close()
	}
	return m.daemon.Close()
}
