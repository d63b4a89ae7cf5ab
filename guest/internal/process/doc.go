// Package process starts commands in the guest and carries their input and output.
//
// Vocabulary
//
//   - process: a command that was started through this package. It leads a session and a process group of its own.
//   - table: the processes that run, and the last ones that ended.
//   - log: the last MiB of a process's output, both streams in the order they were read, numbered by byte offset.
//   - client: the one reader that is attached to a process. While a client is attached, a process that writes faster than
//     the client reads is held back and nothing is lost; while none is, the log drops its oldest bytes.
//   - capture: what takes the output of a command that runs to completion instead of a log: its first MiB of each stream.
//
// A process has ended when its main process has exited and what that wrote has been read. What it leaves in the background
// may hold its pipes open: after a short grace their output is read and dropped, so that a server that was started with "&"
// is neither waited for nor killed by SIGPIPE.
//
// Rejected: os/exec's Cmd with writers, which waits for every holder of the pipes (a forgotten background child would
// hang an exec for ever); a pipe straight to the client (a dropped connection would lose output); a cgroup for each
// command (three more file operations in the path of the first exec after a restore).
package process
