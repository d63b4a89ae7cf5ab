// Package rpc serves the control plane of sandboxes over gRPC: SandboxService, LocatorService and KeyService. It translates
// requests, answers and errors, and decides nothing.
//
// The caller's tenant is what the chassis found in the request; a sandbox of another tenant is NOT_FOUND, the same as one
// that does not exist, so that ids tell nothing.
package rpc
