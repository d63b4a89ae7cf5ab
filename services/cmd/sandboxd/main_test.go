package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/consul/consultest"
	"github.com/coveyhq/covey/services/chassis/pgtest"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.MainWithoutLeaks(m))
}

// start runs the whole program until the test's end.
func start(t *testing.T, c Config) {
	t.Helper()
	m, err := newMain(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func config(t *testing.T, dir, dsn, consul string) Config {
	t.Helper()
	path := filepath.Join(dir, "sandboxd.yaml")
	conf := fmt.Sprintf(`
chassis: {consul: {address: %q, check_interval: 200ms}, log: {level: warn}}
database: {dsn: %q}
bootstrap_api_key_file: %s/key
`, consul, dsn, dir)
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheProgramServesOverRealDatabaseAndConsul(t *testing.T) {
	consul, dsn, dir := consultest.Start(t), pgtest.Database(t), t.TempDir()
	c := config(t, dir, dsn, consul.Addr)
	start(t, c)
	start(t, c) // Replicas share the database and the file.

	d, err := chassis.New(chassis.Config{Service: "covey-gateway", Consul: chassis.ConsulConfig{Address: consul.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	conn, err := d.Dial("covey-sandbox", grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	secret, err := os.ReadFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	who, err := sandboxv1.NewLocatorServiceClient(conn).Authenticate(ctx, &sandboxv1.AuthenticateRequest{ApiKey: strings.TrimSpace(string(secret))})
	if err != nil || who.GetTenantId() != "default" {
		t.Errorf("the bootstrap key is %v, %v", who, err)
	}
	sandboxes := sandboxv1.NewSandboxServiceClient(conn)
	if _, err := sandboxes.ListSandboxes(ctx, &sandboxv1.ListSandboxesRequest{}); err != nil {
		t.Error(err)
	}
	_, err = sandboxes.GetSandbox(ctx, &sandboxv1.GetSandboxRequest{SandboxId: "sb_01ARZ3NDEKTSV4RRFFQ69G5FAV"})
	if status.Code(err) != codes.NotFound || apierr.Info(err) == nil {
		t.Errorf("a sandbox that is not there: %v", err)
	}
}

// TestAHostCannotSpeakForATenant is about a host that was taken over: it has an identity of the mesh, and could say of itself what only a gateway may.
func TestAHostCannotSpeakForATenant(t *testing.T) {
	server := consultest.Start(t)
	c := config(t, t.TempDir(), pgtest.Database(t), server.Addr)
	c.Chassis.TLS.Mode = chassis.TLSConsul
	start(t, c)
	for service, want := range map[string]codes.Code{"covey-gateway": codes.OK, "covey-host": codes.PermissionDenied} {
		d, err := chassis.New(chassis.Config{Service: service, Consul: chassis.ConsulConfig{Address: server.Addr}, TLS: chassis.TLSConfig{Mode: chassis.TLSConsul}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		conn, err := d.Dial("covey-sandbox", grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), scopesKey, "admin"), 2*time.Minute)
		defer cancel()
		if _, err := sandboxv1.NewKeyServiceClient(conn).ListKeys(ctx, &sandboxv1.ListKeysRequest{}); status.Code(err) != want {
			t.Errorf("%s: %v, want %s", service, err, want)
		}
	}
}

func TestConfigurationSaysWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("chassis: {listen: nonsense}\nimages: [{name: Base}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := loadConfig(path)
	for _, want := range []string{"listen: must be host:port", "database.dsn: must be", "images[0]: must have"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	if err := os.WriteFile(path, []byte("nonsense: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadConfig(path); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("an unknown key gives %v", err)
	}
}

func TestEveryMethodHasARowThatSaysWhoMayCall(t *testing.T) {
	c := config(t, t.TempDir(), pgtest.Database(t), "")
	c.Chassis.Peers = map[string][]string{"covey-scheduler": {"127.0.0.1:1"}, "covey-snapshot": {"127.0.0.1:1"}}
	m, err := newMain(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if lacks := callers.Lacks(m.daemon.Server().GetServiceInfo()); len(lacks) > 0 {
		t.Errorf("no row for %s", lacks)
	}
}
