package firecracker_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/probe"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/attach"
	"github.com/coveyhq/covey/hostagent/internal/vmm/vmmtest"
)

// newDriver makes the driver that the conformance suite tests, in this process and in the agent that it starts.
func newDriver() (vmm.Driver, error) {
	disks, _ := attach.New()
	return firecracker.New(firecracker.Config{Binary: os.Getenv(binaryVariable), Disks: disks, Timeout: 5 * time.Second})
}

func TestConformance(t *testing.T) {
	realBinary(t)
	artifacts := os.Getenv("COVEY_ARTIFACTS")
	if artifacts == "" {
		const missing = "COVEY_ARTIFACTS is not set: run `go run ./guest/cmd/guest-build -out DIR` in the repository and set COVEY_ARTIFACTS=DIR (make test does)"
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	verdict, err := probe.KVM(t.Context(), probe.KVMConfig{
		Driver: newDriver, Kernel: filepath.Join(artifacts, "vmlinux"), Dir: t.TempDir(), UID: firstUID, GID: firstUID, Fresh: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !verdict.Works {
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "kvm") {
			t.Fatal(verdict.Reason)
		}
		t.Skipf("Firecracker boots no Linux here: %s", verdict.Reason)
	}
	vmmtest.Run(t, vmmtest.Setup{Kernel: "vmlinux", Driver: func(t *testing.T) vmm.Driver {
		d, err := newDriver()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.(*firecracker.Driver).Close(); err != nil {
				t.Error(err)
			}
		})
		return d
	}})
}
