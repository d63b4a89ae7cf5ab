// Package chassis is what every daemon of Covey shares: configuration, life cycle, gRPC server and clients, discovery in
// Consul, identities, telemetry.
//
// A daemon is made in three steps, so that tests can start the real thing on port 0:
//
//	var cfg struct{ Chassis chassis.Config `yaml:"chassis"` }
//	err := chassis.LoadConfig(path, &cfg)      // strict
//	d, err := chassis.New(cfg.Chassis)         // validates; nothing listens yet
//	schedulerv1.RegisterSchedulerServiceServer(d.Server(), impl)
//	err = d.Run(ctx)                           // until ctx ends; drains, deregisters, releases everything
//
// A daemon that is never run is released by Close. Listen may be called before Run where the address must be known first. Work that goes on beside calls is
// ended in Defer: after the last call and before the connections that it uses. Streams that would go on for ever are named WithEndless, or watch Draining.
//
// A Program is the command line around that: flags, configuration, signals and exit code.
//
// # What a call meets
//
// Server side, outermost first: OpenTelemetry, request id and tenant, log, error mapping, recovery, peer check (mTLS), auth
// hook, default deadline, handler. Client side: tenant and request id, OpenTelemetry, retry, round robin over the passing instances.
//
// # Finding and knowing others
//
// Dial spreads calls over the instances of a service that pass their health checks in Consul; DialAddr reaches one host agent; EachInstance is for what every
// instance must hear. Where Consul is off, Peers in the configuration stand in for it. With tls.mode "consul" each daemon proves which service it is by a certificate of
// Consul's own authority; a caller speaks only to the service that it meant, and WithCallers names those that may call each method; package caller says how, and what a host's agent
// may in whose name. Health checks need no identity, and the port of a daemon that is WithPublic has no TLS of the mesh: it faces the world.
//
// # Design
//
// Chosen: one Daemon value that owns all it made (goroutines, connections, telemetry) and waits for all of it at its end, with
// providers of telemetry that belong to it. Rejected: process-wide providers and loggers, because two daemons in one test
// process would then mix.
package chassis
