package rpc_test

import (
	"testing"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// BenchmarkCreate is what the control plane adds to a start: hosts answer at once. The database does not sync here.
func BenchmarkCreate(b *testing.B) {
	r := newMesh(b).replica("one")
	for b.Loop() {
		r.create(b, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	}
}
