package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu"
	"github.com/coveyhq/covey/hostagent/internal/vmm/vmmtest"
	"github.com/coveyhq/covey/hostagent/preload"
)

// objectDir is where the preloaded object is built, for this process and those that it starts.
const objectDir = "COVEY_QEMU_TEST_DIR"

func TestMain(m *testing.M) {
	vmmtest.Main(newDriver)
	dir, err := os.MkdirTemp("", "covey-qemu-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = os.Setenv(objectDir, dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

func newDriver() (vmm.Driver, error) {
	object, err := preload.Build(context.Background(), os.Getenv(objectDir))
	if err != nil {
		return nil, err
	}
	return qemu.New(qemu.Config{Preload: object, Timeout: 5 * time.Second})
}

// boot boots a VM without network, disk and pager.
func boot(t *testing.T, change func(*vmm.Config)) vmm.VM {
	t.Helper()
	dir := vmmtest.Artifacts(t)
	d, err := qemu.New(qemu.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	run := t.TempDir()
	cfg := vmm.Config{
		ID: "sb,1", RunDir: run, VCPUs: 1, MemoryBytes: 128 << 20, Kernel: filepath.Join(dir, "bzImage"), Cmdline: "panic=0 quiet",
		ConsolePath: filepath.Join(t.TempDir(), "console"), UID: 233456, GID: 233456,
	}
	if change != nil {
		change(&cfg)
	}
	vm, err := d.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Kill(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return vm
}

func TestAVMMIsCaged(t *testing.T) {
	vm := boot(t, nil)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", vm.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t233456\t233456", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is not in\n%s", want, b)
		}
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/etc/passwd", vm.Handle().PID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it sees /etc/passwd: %v", err)
	}
}

func TestAVMWithoutAPagerCannotBeSaved(t *testing.T) {
	vm := boot(t, nil)
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := vm.SaveState(t.Context(), filepath.Join(t.TempDir(), "state")); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("SaveState: %v", err)
	}
	if _, err := vm.SaveDirty(t.Context(), nil); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("SaveDirty: %v", err)
	}
	if n, err := vm.PrivateBytes(); err != nil || n < 1<<20 {
		t.Errorf("PrivateBytes: %d, %v", n, err)
	}
}

func TestWhatIsNoQEMUIsNamed(t *testing.T) {
	for binary, want := range map[string]string{"/bin/echo": "which is no QEMU", "/nowhere/qemu": "no such file"} {
		if _, err := qemu.New(qemu.Config{Binary: binary}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", binary, err)
		}
	}
	if _, err := qemu.New(qemu.Config{Accel: "xen"}); err == nil || !strings.Contains(err.Error(), `got "xen"`) {
		t.Errorf("another accelerator: %v", err)
	}
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
		t.Logf("%+v", d.Capabilities())
		return d
	}})
}
