package chaos

import (
	"fmt"
	"os"
	"testing"

	"github.com/coveyhq/covey/deploy/mesh"
	"github.com/coveyhq/covey/deploy/meshtest"
)

// s is the mesh of all tests.
var s *meshtest.Suite

// The hosts of the mesh, by what they are in most tests.
const (
	source = "host-a" // makes snapshots: it uploads them, and serves them to others
	target = "host-b" // resumes and spawns
	third  = "host-c" // is drained
)

func TestMain(m *testing.M) {
	code, err := meshtest.Main(m, "chaos", mesh.Options{
		Hosts: 3, Slots: 16, MemoryMB: 2048, Backbone: true, ObjectServer: true, MutualTLS: true,
		Timing: map[string]string{"lease": "3s", "reconcile": "1s", "host_lost": "4s", "unreachable": "10s", "unknown_grace": "5s"},
	}, func(got *meshtest.Suite) { s = got })
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		code = 1
	}
	os.Exit(code)
}
