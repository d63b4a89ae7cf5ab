// Package consul is how daemons find each other: it keeps a daemon registered in Consul, watches the instances of services, and resolves gRPC
// targets of the form "consul:///covey-scheduler".
//
// An instance is one running daemon of a service. It passes while Consul's gRPC health check of it does. All watching is by blocking queries, which
// Consul answers when something changes: nothing is polled.
//
// Consul may go away and come back at any time. Meanwhile what was known last stays in force. When Consul is back it may have forgotten everything;
// each daemon then notices that it is gone from there and registers again, and for a while (relearnTime) instances are only added to what is known, so that an
// empty catalogue does not cut the mesh.
//
// Chosen: one long query for each watched service. Rejected: Consul's DNS interface, which must be polled and knows no health of its own; and Consul's
// xDS, which needs its gRPC port and a proxy's registration for every client.
package consul
