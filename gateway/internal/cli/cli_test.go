package cli_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/coveyhq/covey/gateway/internal/cli"
	"github.com/coveyhq/covey/gateway/internal/gateway"
	"github.com/coveyhq/covey/gateway/internal/meshtest"
	"github.com/coveyhq/covey/services/chassis"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"covey": func() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// TestCommands runs the scripts in testdata, each against a gateway of its own on a mesh of fakes. $SB is a running sandbox.
func TestCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			mesh := meshtest.Start(t)
			env.Setenv("COVEY_URL", serveFor(t, mesh, gateway.TLSConfig{}))
			cert := gateway.TLSConfig{CertFile: filepath.Join(env.WorkDir, "ca.pem"), KeyFile: filepath.Join(env.WorkDir, "key.pem")}
			meshtest.Certify(t, cert.CertFile, cert.KeyFile, 1)
			env.Setenv("TLS_URL", strings.Replace(serveFor(t, mesh, cert), "http:", "https:", 1))
			env.Setenv("CA_FILE", cert.CertFile)
			env.Setenv("COVEY_API_KEY", meshtest.AdminKey)
			env.Setenv("READ_KEY", meshtest.ReadKey)
			env.Setenv("SB", mesh.Add())
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"none-left": noneLeft},
	})
}

// serveFor runs a gateway until the test's end.
func serveFor(t *testing.T, mesh *meshtest.Mesh, cert gateway.TLSConfig) string {
	t.Helper()
	g, err := gateway.New(gateway.Config{TLS: cert, Chassis: chassis.Config{Service: "covey-gateway", Peers: map[string][]string{
		"covey-sandbox": {mesh.Addr}, "covey-scheduler": {mesh.Addr}, "covey-snapshot": {mesh.Addr},
	}}}, chassis.WithLogOutput(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Daemon.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Daemon.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + g.Daemon.Addr()
}

// noneLeft fails if a sandbox runs besides $SB.
func noneLeft(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(ts.Exec("covey", "ls", "--state", "running"))
	for line := range strings.SplitSeq(ts.ReadFile("stdout"), "\n") {
		if strings.HasPrefix(line, "sb_") && !strings.HasPrefix(line, ts.Getenv("SB")) {
			ts.Fatalf("left: %s", line)
		}
	}
}
