// Package mesh prepares a machine for Covey and runs a whole mesh on it: PostgreSQL, Consul and every daemon, each a real
// process on loopback. `make up`, the demo, the end-to-end tests and the benchmarks all use it.
//
// Vocabulary
//
//   - toolchain: everything that is made before the mesh can start, cached by content: Debian packages, Covey's own
//     binaries, Consul, kernel and images.
//   - mesh: the running processes; described by a state file in the mesh's directory, from which a later process can
//     attach to it or take it down.
//
// Chosen: one Go library that starts plain processes, writes their configuration and records pid and start time.
// Rejected: docker compose (needs an engine, and VMMs in containers need privileges that hide what a host needs),
// systemd units (not every machine that runs tests has systemd as its init), and a shell script (its failures say
// nothing, and the tests could not use it).
//
// Everything listens on loopback; ports are chosen free, but for the gateway's, which a person types. With Options.Backbone everything is at a site of its
// own instead, a network namespace with one link to a switch in another: so that sites can be cut off (CutOff, Part), slowed (Slow) and measured
// (Traffic), and hosts killed with all that runs there (KillHost). No link leads out of these namespaces; Mesh.Dial goes in.
package mesh
