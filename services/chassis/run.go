package chassis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/services/chassis/consul"
)

// Run listens, registers in Consul and serves until ctx ends or serving fails. Then it drains, deregisters and releases everything.
func (d *Daemon) Run(ctx context.Context) error {
	err := d.serve(ctx)
	return errors.Join(err, d.Close())
}

func (d *Daemon) serve(ctx context.Context) error {
	if err := d.checkTable(); err != nil {
		return err
	}
	if err := d.Listen(); err != nil {
		return err
	}
	reg, err := d.registration()
	if err != nil {
		return err
	}
	r := run{Daemon: d, failed: make(chan error, 3)}
	r.begin()
	d.setRunning(true)
	r.stay(ctx, reg)
	d.log.Info("serving", "address", d.Addr(), "metrics", d.MetricsAddr())
	select {
	case <-ctx.Done():
	case err = <-r.failed:
		d.log.Error("serving failed", "error", err)
	}
	r.drain(ctx)
	d.log.Info("ended")
	return err
}

func (d *Daemon) setRunning(yes bool) {
	d.mu.Lock()
	d.serving = yes
	d.mu.Unlock()
	d.tellHealth()
}

// run is what goes on while a daemon serves.
type run struct {
	*Daemon
	failed  chan error // gets a value when one of the servers ends by itself; has room for all
	serving sync.WaitGroup
	leave   func() // deregisters
}

// begin serves the ports.
func (r *run) begin() {
	r.own = map[string]bool{}
	for name := range r.server.GetServiceInfo() {
		r.own[name] = true
	}
	grpcLn := r.listener
	if r.web != nil {
		s := split(r.listener, r.opts.tls)
		grpcLn = s.grpc
		r.mixed = mixed(s.grpc)
		r.serving.Go(s.run)
		r.serveHTTP(r.web, s.web)
	}
	r.serving.Go(func() {
		if err := r.server.Serve(grpcLn); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			r.failed <- fmt.Errorf("gRPC server: %w", err)
		}
	})
	if r.metricsLn != nil {
		r.metrics = r.newMetricsServer()
		r.serveHTTP(r.metrics, r.metricsLn)
	}
}

func (r *run) serveHTTP(s *http.Server, l net.Listener) {
	r.serving.Go(func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			r.failed <- fmt.Errorf("HTTP server: %w", err)
		}
	})
}

// stay keeps the daemon registered in Consul until leave.
func (r *run) stay(ctx context.Context, reg consul.Registration) {
	if r.consul == nil {
		r.leave = func() {}
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var staying sync.WaitGroup
	staying.Go(func() { r.consul.Keep(ctx, reg) })
	r.leave = func() {
		cancel()
		staying.Wait()
	}
}

// drain keeps new calls away, gives those under way their time, and waits until nothing serves any more.
func (r *run) drain(ctx context.Context) {
	r.log.Info("draining", "for_at_most", r.cfg.Drain)
	close(r.draining)
	r.setRunning(false)
	r.leave()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Drain)
	defer cancel()
	var ending sync.WaitGroup
	if r.web != nil {
		ending.Go(func() { stopHTTP(ctx, r.web) })
	}
	graceful := make(chan struct{})
	ending.Go(func() {
		defer close(graceful)
		r.server.GracefulStop()
	})
	select {
	case <-graceful:
	case <-ctx.Done():
		r.log.Info("calls are cut off, as they did not end in time")
	}
	r.server.Stop() // Ends GracefulStop too.
	ending.Wait()
	if r.opts.relay != nil {
		r.opts.relay.Wait()
	}
	if r.metrics != nil {
		stopHTTP(ctx, r.metrics)
	}
	_ = r.listener.Close() // Without it the split would go on where gRPC alone has ended; closing twice does no harm.
	r.serving.Wait()
}

// stopHTTP lets requests end until ctx does.
func stopHTTP(ctx context.Context, s *http.Server) {
	if s.Shutdown(ctx) != nil {
		_ = s.Close()
	}
}
