// Package postgres keeps the registry's index in PostgreSQL, in a schema of its own, "snapshot".
//
// What makes collection safe is here, in the order of locks. A registration inserts or locks the rows of all objects that it
// names, in the order of their keys, then refers to them. The collector locks object rows, skipping those that are locked, and
// then, in a statement of its own, deletes those that nothing refers to. A registration that comes second finds the row
// gone and makes a new one with a new path; a collector that comes second sees the reference.
//
// Design chosen: candidates for collection are noted by a trigger whenever a reference goes, so that no query can forget to and
// the collector never looks at all objects. Rejected: searching for objects without references, which costs more the more there are.
//
// Design chosen: manifests as JSON. Rejected: a column for each of their fields, none of which is searched for.
//
// Queries are in queries/*.sql; `sqlc generate` (v1.31.1) in this directory makes their Go code.
package postgres
