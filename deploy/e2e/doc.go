// Package e2e tests the promises of the whole mesh: real PostgreSQL, Consul, daemons and VMs, reached through the gateway as users
// reach it. One mesh serves all tests of the package; tests that kill daemons put them back.
//
// The tests need what `make test` prepares and skip without it, saying so.
package e2e
