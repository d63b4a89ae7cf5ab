// Package rpc serves the registry over gRPC: SnapshotService for users, RegistryService for hosts and sandboxd.
//
// Whose call it is comes from the chassis. A user's call without a tenant is the first tenant's. A registry call without one may
// see everything; one with a tenant, as the control plane's calls for a user have, is held to it.
package rpc
