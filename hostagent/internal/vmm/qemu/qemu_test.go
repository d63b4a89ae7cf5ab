package qemu_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu"
	"github.com/coveyhq/covey/hostagent/internal/vmm/vmmtest"
	"github.com/coveyhq/covey/hostagent/preload"
)

func TestMain(m *testing.M) {
	vmmtest.Main(newDriver)
	goleak.VerifyTestMain(m)
}

func newDriver() (vmm.Driver, error) {
	object, err := preload.Build(context.Background(), filepath.Join(os.TempDir(), "covey-qemu-test-preload"))
	if err != nil {
		return nil, err
	}
	return qemu.New(qemu.Config{Preload: object, Timeout: 3 * time.Second})
}

func TestConformance(t *testing.T) {
	vmmtest.Run(t, vmmtest.Setup{Kernel: "bzImage", Driver: func(t *testing.T) vmm.Driver {
		d, err := newDriver()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.(*qemu.Driver).Close(); err != nil {
				t.Error(err)
			}
		})
		fmt.Fprintf(os.Stderr, "%+v\n", d.Capabilities())
		return d
	}})
}
