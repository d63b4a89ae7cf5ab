// Package process starts commands in the guest and carries their input and output.
//
// Vocabulary
//
//   - process: a command that was started through this package, with its process group.
//   - log: the last MiB of a process's output, both streams in the order they were read, numbered by byte offset.
//   - client: the one reader that is attached to a process. While a client is attached, a process that writes faster than
//     the client reads is held back and nothing is lost; while none is, the log drops its oldest bytes.
//
// Rejected: os/exec's Cmd with writers, which waits for every holder of the pipes (a forgotten background child would
// hang an exec for ever), and a pipe straight to the client (a dropped connection would lose output).
package process
