// Package rest is the HTTP side of the gateway: JSON over the generated handlers of grpc-gateway, and by hand what those cannot do.
//
//   - exec.go: exec over WebSocket
//   - files.go, multipart.go: files of any size, in constant memory
//   - ports.go: programs in sandboxes that listen on a port
//   - shield.go: what browsers may make of answers: the programs', the documentation's, the API's
//   - events.go: streams of events as NDJSON or server-sent events
//   - errors.go: the one shape that all errors have
//   - middleware.go: what every request meets: request id, log, recovery, key, limits of its body
//
// JSON names are those of the proto files (memory_mb). Requests with a field that does not exist are refused, so that a misspelt option is
// not silently without effect.
//
// Chosen: one runtime.ServeMux with the routes by hand registered in it too, so that 404 and 405 have one answer. Rejected: a router before it, which
// would have to know the generated routes to tell the two apart.
package rest
