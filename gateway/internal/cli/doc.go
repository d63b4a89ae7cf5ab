// Package cli is the covey command: sandboxes from a terminal, over native gRPC to the gateway.
//
// What a person reads is a table or a sentence; what a program reads is -o json, the API's own messages. Exit codes: the
// command's own for run and exec, 2 for wrong usage, 1 for everything else.
//
// Chosen: one gRPC connection for control and streams. Rejected: REST with a WebSocket for streams, which would need two
// clients and add a hop to every byte.
package cli
