package choice_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/coveyhq/covey/hostagent/internal/choice"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(t *testing.T) choice.Config {
	t.Helper()
	artifacts := os.Getenv("COVEY_ARTIFACTS")
	return choice.Config{
		Vmlinux: filepath.Join(artifacts, "vmlinux"), BzImage: filepath.Join(artifacts, "bzImage"), KernelID: "test", Dir: t.TempDir(), UID: 265000, GID: 265000,
		Firecracker: firecracker.Config{Binary: os.Getenv("COVEY_FIRECRACKER_BIN")},
	}
}

func TestIllegalConfigurationsAreRefusedByField(t *testing.T) {
	for want, change := range map[string]func(*choice.Config){
		"driver: must be one of auto, firecracker, qemu": func(c *choice.Config) { c.Driver = "xen" },
		"accel: must be one of auto, kvm, tcg":           func(c *choice.Config) { c.Accel = "hvf" },
		"accel: Firecracker runs with kvm only":          func(c *choice.Config) { c.Driver, c.Accel = "firecracker", "tcg" },
	} {
		conf := config(t)
		change(&conf)
		if _, _, err := choice.Driver(t.Context(), conf); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it says %v, want %q", err, want)
		}
	}
}

func TestWhatIsAskedForIsNotReplaced(t *testing.T) {
	conf := config(t)
	conf.Driver, conf.Firecracker.Binary = "firecracker", "/nowhere/firecracker"
	d, findings, err := choice.Driver(t.Context(), conf)
	if err == nil {
		closeDriver(t, d)
		t.Fatal("a driver was chosen")
	}
	if len(findings) != 3 || findings[0].Chosen || !strings.Contains(findings[2].Reason, "the configuration asks for the driver firecracker") {
		t.Errorf("the findings are %+v", findings)
	}
}

func closeDriver(t *testing.T, d vmm.Driver) {
	t.Helper()
	if err := d.(interface{ Close() error }).Close(); err != nil {
		t.Error(err)
	}
}

// TestAutoTakesTheFirstThatBoots tries the real drivers: what is chosen depends on the machine, that the findings explain it does not.
func TestAutoTakesTheFirstThatBoots(t *testing.T) {
	if os.Getenv("COVEY_ARTIFACTS") == "" {
		const missing = "COVEY_ARTIFACTS is not set: run `go run ./guest/cmd/guest-build -out DIR` in the repository and set COVEY_ARTIFACTS=DIR (make test does)"
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	d, findings, err := choice.Driver(context.Background(), config(t))
	if err != nil {
		t.Fatal(err)
	}
	defer closeDriver(t, d)
	for _, f := range findings {
		t.Logf("%+v", f)
	}
	last := findings[len(findings)-1]
	caps := d.Capabilities()
	want := map[string]vmm.Capabilities{
		"Firecracker": {Driver: "firecracker", Accel: vmm.KVM}, "QEMU with KVM": {Driver: "qemu", Accel: vmm.KVM}, "QEMU with TCG": {Driver: "qemu", Accel: vmm.TCG},
	}[last.Candidate]
	if !last.Chosen || caps.Driver != want.Driver || caps.Accel != want.Accel {
		t.Errorf("the driver is %+v, the last finding %+v", caps, last)
	}
	for _, f := range findings[:len(findings)-1] {
		if f.Chosen || f.Reason == "" {
			t.Errorf("a candidate that was passed over: %+v", f)
		}
	}
	if strings.Contains(os.Getenv("COVEY_REQUIRE"), "kvm") && caps.Accel != vmm.KVM {
		t.Errorf("KVM is required: %s", choice.Explain(findings))
	}
}
