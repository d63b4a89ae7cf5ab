// Package caller says who may call what between daemons, and carries who calls from the check of its certificate to the handler.
//
// Vocabulary
//
//   - caller: a daemon that has proved by its certificate which service of the mesh it is and, if a host agent, of which host.
//   - table: for each method of a daemon the services that may call it. What has no row nobody may call.
//   - to speak for a host: to be its agent. Of one host's agent nothing is taken in another's name; sandboxd speaks of all.
//
// A host agent runs beside untrusted code, so it is the caller to be wary of: one that was taken over must have no more than its own host.
//
// Chosen: a table of methods in each daemon, checked when it starts against the methods that its server has, and in the handlers the one thing that a table
// cannot say, in whose name a host speaks. Rejected: Consul's intentions, which know services and no gRPC methods but by way of a proxy; and a policy in a
// file, because who calls what is a fact of the code, which changes with it.
package caller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// The services that daemons prove to be; so they are named in Consul, in configurations and in traces too.
const (
	Gateway   = "covey-gateway"
	Sandbox   = "covey-sandbox"
	Scheduler = "covey-scheduler"
	Snapshot  = "covey-snapshot"
	Host      = "covey-host"
)

// notAllowed is the reason of refusals.
const notAllowed = "CALLER_NOT_ALLOWED"

// Caller is who calls.
type Caller struct {
	// Service is like "covey-host".
	Service string
	// HostID is the host of a host agent; empty for others.
	HostID string
}

// Named is the caller that an identity names: a service, or the agent of a host.
func Named(identity string) Caller {
	if id, ok := strings.CutPrefix(identity, Host+"-"); ok && id != "" {
		return Caller{Host, id}
	}
	return Caller{Service: identity}
}

// Identity is what a caller's certificate names: a service, and for a host agent the host too, as it stands in Consul.
func (c Caller) Identity() string {
	if c.Service == Host && c.HostID != "" {
		return Host + "-" + c.HostID
	}
	return c.Service
}

// Table has the services that may call each method, by full method, like "/covey.scheduler.v1.SchedulerService/Place". A row without services is of
// a method that no daemon calls.
type Table map[string][]string

// Check refuses a caller that the row of a method of a daemon does not name.
func (t Table) Check(daemon string, c Caller, fullMethod string) error {
	services, has := t[fullMethod]
	if slices.Contains(services, c.Service) {
		return nil
	}
	who := "no daemon may"
	switch {
	case !has:
		who = "no row of its table names that method"
	case len(services) > 0:
		who = strings.Join(services, ", ") + " may"
	}
	return apierr.E(codes.PermissionDenied, notAllowed, fmt.Sprintf("%s may not call %s of %s: %s", c.Identity(), strings.TrimPrefix(fullMethod, "/"), daemon, who),
		"caller", c.Identity())
}

// Lacks lists the methods of a server, gRPC's own services left out, that have no row.
func (t Table) Lacks(server map[string]grpc.ServiceInfo) []string {
	var lacks []string
	for _, service := range slices.Sorted(maps.Keys(server)) {
		if strings.HasPrefix(service, "grpc.") {
			continue
		}
		for _, m := range server[service].Methods {
			if _, has := t["/"+service+"/"+m.Name]; !has {
				lacks = append(lacks, "/"+service+"/"+m.Name)
			}
		}
	}
	return lacks
}

type callerKey struct{}

// With returns the context of a call by c.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// From returns who calls; ok is false where daemons do not know each other (without mutual TLS).
func From(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// SpeaksFor refuses a host agent that calls in the name of another host than its certificate's. Field is where the call names the host.
func SpeaksFor(ctx context.Context, field, hostID string) error {
	c, ok := From(ctx)
	if !ok || c.Service != Host || c.HostID != "" && c.HostID == hostID {
		return nil
	}
	return apierr.E(codes.PermissionDenied, notAllowed, fmt.Sprintf("%s: must be the caller's own host, and %s is not the agent of %q", field, c.Identity(), hostID),
		"caller", c.Identity(), "field", field)
}
