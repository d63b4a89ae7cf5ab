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
// Design chosen: the spans of time that sandboxes ran are written by a trigger of the very statement that moves the state, and quotas are
// counted under a lock of the tenant's row. Rejected: counters that are added to and taken from, which drift with every change that
// somebody forgot; and usage sampled by a timer, which loses what lies between two samples and all that a crash takes. A sandbox that its
// host paused by itself counts as running until a replica has written it down: a moment, or as long as no replica runs.
//
// Queries are in queries/*.sql; `sqlc generate` (v1.31.1) in this directory makes their Go code.
package postgres
