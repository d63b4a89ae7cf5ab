// Package chaos tests what becomes of sandboxes and of bytes when parts of a mesh die, are cut off or are slow: three hosts, the registry, the object
// store, Consul and PostgreSQL, each a real process in a network namespace of its own. One mesh serves all tests of the package; tests put
// back what they break.
//
// The tests need what `make test` prepares and skip without it, saying so.
package chaos
