// Package peers lets the control plane of sandboxes speak to the other daemons: host agents, the scheduler and the
// snapshot registry. It translates between the domain of package sandbox and the generated code and keeps nothing but the
// hosts' addresses.
//
// Errors come back as *sandbox.Error with the reason that the other side gave, so that they can be stored and shown.
package peers
