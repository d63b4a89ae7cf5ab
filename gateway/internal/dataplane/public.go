package dataplane

import (
	"context"

	"google.golang.org/grpc"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// ofHosts are the methods of the public sandbox service that a sandbox's host answers, under the host agent's names. Requests and answers of the two
// are the same on the wire, field by field, so that they pass as they are.
var ofHosts = map[string]string{
	sandboxv1.SandboxService_GetSandboxMetrics_FullMethodName: hostv1.HostService_GetSandboxMetrics_FullMethodName,
	sandboxv1.SandboxService_ReadSandboxLogs_FullMethodName:   hostv1.HostService_ReadConsole_FullMethodName,
}

// moving are the methods of the public sandbox service after which a sandbox may be on another host, or on none.
var moving = map[string]bool{
	sandboxv1.SandboxService_PauseSandbox_FullMethodName:  true,
	sandboxv1.SandboxService_ResumeSandbox_FullMethodName: true,
	sandboxv1.SandboxService_DeleteSandbox_FullMethodName: true,
}

// Public is the sandbox service as clients see it: what its hosts know they are asked, and sandboxes all else. What moves a sandbox has hosts look for it
// anew. Rejected: having the sandbox service ask the hosts, which would put it and the database into the path of logs that are followed for hours.
func Public(sandboxes, data grpc.ClientConnInterface, hosts *Hosts) grpc.ClientConnInterface {
	return public{sandboxes, data, hosts}
}

type public struct {
	sandboxes, data grpc.ClientConnInterface
	hosts           *Hosts
}

func (p public) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if m, ok := ofHosts[method]; ok {
		return p.data.Invoke(ctx, m, args, reply, opts...)
	}
	if named, ok := args.(interface{ GetSandboxId() string }); ok && moving[method] {
		// Afterwards, for who asks meanwhile may be told the old place; and whatever comes of it.
		defer p.hosts.Forget(ctx, named.GetSandboxId())
	}
	return p.sandboxes.Invoke(ctx, method, args, reply, opts...)
}

func (p public) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if m, ok := ofHosts[method]; ok {
		return p.data.NewStream(ctx, desc, m, opts...)
	}
	return p.sandboxes.NewStream(ctx, desc, method, opts...)
}
