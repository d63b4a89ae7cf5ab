// Package postgres keeps sandboxes in PostgreSQL, in a schema of their own.
//
// Every change of a row is a compare-and-set on its version column, and a trigger writes an event row for it with the next
// number of the tenant's clock and sends a notification, so that no query can forget to. Watchers read events by number
// and are woken by LISTEN on one connection per process; a notification carries no truth, only the wish to look.
//
// Design chosen: numbers from a row per tenant that stays locked until commit, so that they become visible in order and without
// gaps. Rejected: a sequence, whose numbers become visible out of order, so that a watcher would have to guess how long
// to wait for a missing one. The price is that changes of one tenant commit one after the other.
//
// Design chosen: times of leases and of states are the database's, never a replica's. Rejected: the replicas' clocks, whose
// difference would shorten leases.
//
// Queries are in queries/*.sql; `sqlc generate` (v1.31.1) in this directory makes their Go code.
package postgres
