package chassis

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/chassis/consul"
	"github.com/coveyhq/covey/services/chassis/telemetry"
)

// flushTime bounds the sending of the last spans and metrics.
const flushTime = 3 * time.Second

// Daemon is one running daemon and owns all that it is made of.
type Daemon struct {
	cfg    Config
	opts   options
	log    *slog.Logger
	tel    *telemetry.Telemetry
	consul *consul.Client // nil without Consul
	// identity is for mutual TLS; nil without.
	identity *consul.Identity
	server   *grpc.Server
	health   *health.Server

	web      *http.Server    // WithHTTP's; nil without
	mixed    http.Handler    // gRPC calls that came to web; set once by Run
	metrics  *http.Server    // nil without metrics_listen
	own      map[string]bool // names of the services that are served here and not relayed; set once by Run
	draining chan struct{}
	wanted   atomic.Bool // what SetServing last said

	mu        sync.Mutex // guards the rest
	listener  net.Listener
	metricsLn net.Listener
	serving   bool // Run has begun and not begun to drain
	conns     []*grpc.ClientConn
	byAddr    map[string]*grpc.ClientConn
	deferred  []func() error
	closed    bool
}

// New makes a daemon that does not listen yet. Run or Close must be called.
func New(cfg Config, opts ...Option) (_ *Daemon, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Daemon{cfg: cfg.withDefaults(), draining: make(chan struct{}), byAddr: map[string]*grpc.ClientConn{}}
	for _, o := range opts {
		o(&d.opts)
	}
	d.wanted.Store(true)
	if d.log, err = d.logger(); err != nil {
		return nil, err
	}
	if d.tel, err = telemetry.New(context.Background(), d.cfg.Telemetry, d.cfg.Service, d.opts.hostID); err != nil {
		return nil, err
	}
	if d.cfg.Consul.Address != "" {
		if d.consul, err = consul.New(d.cfg.Consul.Address, string(d.cfg.Consul.Token), d.log); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	if d.cfg.TLS.Mode == TLSConsul {
		d.identity = d.consul.Identity(caller.Caller{Service: d.cfg.Service, HostID: d.opts.hostID})
	}
	d.server = d.newServer()
	d.health = health.NewServer()
	d.tellHealth()
	healthpb.RegisterHealthServer(d.server, d.health)
	if d.opts.http != nil {
		d.web = d.newWeb()
	}
	return d, nil
}

func (d *Daemon) logger() (*slog.Logger, error) {
	l := d.opts.log
	if l == nil {
		out := d.opts.logOutput
		if out == nil {
			out = os.Stderr
		}
		var err error
		if l, err = telemetry.NewLogger(out, d.cfg.Log.Level, d.cfg.Log.Format); err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
	}
	l = l.With("service", d.cfg.Service)
	if d.opts.hostID != "" {
		l = l.With("host_id", d.opts.hostID)
	}
	return l, nil
}

func (d *Daemon) debugLog() *log.Logger { return slog.NewLogLogger(d.log.Handler(), slog.LevelDebug) }

// Server is the gRPC server, to register services on before Run.
func (d *Daemon) Server() *grpc.Server { return d.server }

// Log is the daemon's logger.
func (d *Daemon) Log() *slog.Logger { return d.log }

// Telemetry has the daemon's providers of traces and metrics.
func (d *Daemon) Telemetry() *telemetry.Telemetry { return d.tel }

// Consul is the daemon's client of Consul; nil without Consul.
func (d *Daemon) Consul() *consul.Client { return d.consul }

// Draining is closed when the daemon begins to end. Handlers of streams that would go on for ever must return then, as others may
// finish within the time that the configuration gives them.
func (d *Daemon) Draining() <-chan struct{} { return d.draining }

// Defer has f called when the daemon's calls have ended and before its connections and telemetry go: the place to end work that goes on beside
// calls. What was added last is called first.
func (d *Daemon) Defer(f func() error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deferred = append(d.deferred, f)
}

// SetServing says whether the daemon can serve. It is seen by Consul's check, and so by callers, once Run has begun. The default is true.
func (d *Daemon) SetServing(ok bool) {
	d.wanted.Store(ok)
	d.tellHealth()
}

// ready tells whether calls should come.
func (d *Daemon) ready() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.serving && d.wanted.Load()
}

// tellHealth brings the health service up to date.
func (d *Daemon) tellHealth() {
	st := healthpb.HealthCheckResponse_NOT_SERVING
	if d.ready() {
		st = healthpb.HealthCheckResponse_SERVING
	}
	d.health.SetServingStatus("", st)
	d.health.SetServingStatus(d.cfg.Service, st)
}

// Listen opens the daemon's ports, if that has not been done. Calls wait in them until Run.
func (d *Daemon) Listen() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errors.New("the daemon is closed")
	}
	if d.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", d.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if d.cfg.MetricsListen != "" {
		if d.metricsLn, err = net.Listen("tcp", d.cfg.MetricsListen); err != nil {
			return errors.Join(fmt.Errorf("metrics_listen: %w", err), l.Close())
		}
	}
	d.listener = l
	return nil
}

// Addr is where others reach the daemon, host:port; "" before Listen.
func (d *Daemon) Addr() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener == nil {
		return ""
	}
	actual := d.listener.Addr().String()
	if d.cfg.Advertise == "" {
		return actual
	}
	host, port, _ := net.SplitHostPort(d.cfg.Advertise)
	if port == "0" {
		_, port, _ = net.SplitHostPort(actual)
	}
	return net.JoinHostPort(host, port)
}

// MetricsAddr is the address of /metrics, /healthz and /readyz, host:port; "" before Listen or without them.
func (d *Daemon) MetricsAddr() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.metricsLn == nil {
		return ""
	}
	return d.metricsLn.Addr().String()
}

// registration is how the daemon stands in Consul.
func (d *Daemon) registration() (consul.Registration, error) {
	addr := d.Addr()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return consul.Registration{}, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return consul.Registration{}, fmt.Errorf("advertise: the port must be a number, got %q", port)
	}
	r := consul.Registration{
		ID: d.cfg.Service + "-" + addr, Name: d.cfg.Service, Host: host, Port: n, Meta: map[string]string{},
		CheckInterval: d.cfg.Consul.CheckInterval, DeregisterAfter: d.cfg.Consul.DeregisterAfter, Passing: d.ready, TLS: d.servesTLS() || d.opts.tls != nil,
	}
	if d.opts.hostID != "" {
		r.ID, r.Meta["host_id"] = d.cfg.Service+"-"+d.opts.hostID, d.opts.hostID
	}
	if m := d.MetricsAddr(); m != "" {
		r.Meta["metrics"] = m
	}
	return r, nil
}

// Close releases a daemon that is not run. After Run it does nothing.
func (d *Daemon) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	deferred, conns, listeners := d.deferred, d.conns, []net.Listener{d.listener, d.metricsLn}
	d.mu.Unlock()

	var errs []error
	if d.server != nil {
		d.server.Stop()
	}
	for _, l := range listeners {
		// Already closed where something served it.
		if l != nil {
			_ = l.Close()
		}
	}
	for i := len(deferred) - 1; i >= 0; i-- {
		errs = append(errs, deferred[i]())
	}
	for _, c := range conns {
		errs = append(errs, c.Close())
	}
	if d.identity != nil {
		d.identity.Close()
	}
	if d.consul != nil {
		d.consul.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if err := d.tel.Shutdown(ctx); err != nil {
		d.log.Warn("the last traces and metrics are lost", "error", err)
	}
	return errors.Join(errs...)
}
