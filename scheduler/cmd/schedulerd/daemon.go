package main

import (
	"context"
	"sync"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/scheduler/baseline"
	"github.com/coveyhq/covey/scheduler/book"
	"github.com/coveyhq/covey/scheduler/cordon"
	"github.com/coveyhq/covey/scheduler/rpc"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/consul"
)

// Main is one running schedulerd.
type Main struct {
	daemon    *chassis.Daemon
	book      *book.Book
	cordons   *cordon.Store
	baselines *baseline.Store
	server    *rpc.Server
	others    *rpc.Schedulers
}

// newMain makes everything and listens to nothing yet. run must be called, which also releases it.
func newMain(c Config) (*Main, error) {
	d, err := chassis.New(c.Chassis, chassis.WithCallers(callers))
	if err != nil {
		return nil, err
	}
	m := &Main{daemon: d, book: book.New(book.Config{Timing: c.Timing, Log: d.Log(), AwaitCordons: d.Consul() != nil})}
	m.cordons = cordon.NewStore(d.Consul(), m.book)
	m.baselines = baseline.NewStore(d.Consul(), d.Log())
	m.server = rpc.Register(d.Server(), m.book, m.cordons, m.baselines, d.Draining())
	m.others = rpc.NewSchedulers(d.Log())
	m.server.Others = m.others
	return m, nil
}

// run serves until ctx ends.
func (m *Main) run(ctx context.Context) error {
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	work.Go(func() { m.book.Run(working) })
	work.Go(func() { m.cordons.Run(working) })
	work.Go(func() { m.baselines.Run(working) })
	work.Go(func() { m.daemon.Watch(working, caller.Host, m.checks) })
	work.Go(func() {
		m.daemon.EachInstance(working, caller.Scheduler, func(ctx context.Context, c *grpc.ClientConn) { m.others.Join(ctx, c) })
	})
	m.daemon.Defer(func() error {
		stop()
		work.Wait()
		m.server.Wait()
		return nil
	})
	return m.daemon.Run(ctx)
}

// checks takes over what Consul's health checks say of the hosts.
func (m *Main) checks(list []consul.Instance, err error) {
	if err != nil {
		return // What was known stays in force.
	}
	failing := map[string]bool{}
	for _, i := range list {
		if id := i.Meta["host_id"]; id != "" && !i.Passing {
			failing[id] = true
		}
	}
	m.book.SetFailing(failing)
}
