package chaos

import (
	"github.com/coveyhq/covey/deploy/meshtest"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

func onHost(host string) *sandboxv1.CreateSandboxRequest { return meshtest.On(host) }
