// Package meshtest is what test packages on a whole mesh share: one mesh for all tests of a package, clients through its gateway,
// sandboxes with a load that is found again, and the search for what must not be missing or left.
//
// A package's TestMain calls Main with the options of its mesh and keeps the Suite; each test begins with Suite.Start. The tests need what
// `make test` prepares and skip without it, saying so.
package meshtest
