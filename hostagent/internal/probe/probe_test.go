package probe_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coveyhq/covey/hostagent/internal/probe"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu"
	"github.com/coveyhq/covey/hostagent/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func kernel(t *testing.T) string {
	t.Helper()
	return filepath.Join(vmmtest.Artifacts(t), "bzImage")
}

// emulated tries the kernel with an accelerator that works everywhere, as if it were KVM. Where /dev/kvm is missing there is
// nothing that a trial could follow on.
func emulated(t *testing.T) probe.KVMConfig {
	t.Helper()
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip("this machine has no /dev/kvm, so the probe makes no trial")
	}
	return probe.KVMConfig{
		Driver:   func() (vmm.Driver, error) { return qemu.New(qemu.Config{}) },
		DriverID: "qemu", KernelID: "one", Kernel: kernel(t), Dir: t.TempDir(), UID: 232345, GID: 232345, Deadline: time.Minute,
	}
}

func TestAKernelThatBootsIsSeenToBoot(t *testing.T) {
	conf := emulated(t)
	v, err := probe.KVM(t.Context(), conf)
	if err != nil || !v.Works || v.Cached || v.Accel() != vmm.KVM || !strings.HasPrefix(v.Reason, "the guest's kernel boots, in ") {
		t.Fatalf("got %+v, %v", v, err)
	}
	// From now on it is known, for this kernel and this driver.
	conf.Driver = func() (vmm.Driver, error) { return nil, errors.New("tried again") }
	if v, err := probe.KVM(t.Context(), conf); err != nil || !v.Works || !v.Cached {
		t.Errorf("the second time: %+v, %v", v, err)
	}
	for name, change := range map[string]func(*probe.KVMConfig){
		"another kernel": func(c *probe.KVMConfig) { c.KernelID = "two" },
		"another driver": func(c *probe.KVMConfig) { c.DriverID = "other" },
		"fresh":          func(c *probe.KVMConfig) { c.Fresh = true },
	} {
		other := conf
		change(&other)
		if v, err := probe.KVM(t.Context(), other); err != nil || v.Works || v.Cached || v.Accel() != vmm.TCG || !strings.Contains(v.Reason, "tried again") {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	if list, err := os.ReadDir(conf.Dir); err != nil || len(list) != 1 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}

func TestAKernelThatGetsNowhereIsGivenUp(t *testing.T) {
	conf := emulated(t)
	conf.Deadline = 200 * time.Millisecond
	v, err := probe.KVM(t.Context(), conf)
	if err != nil || v.Works || !strings.Contains(v.Reason, "within 200ms") {
		t.Errorf("got %+v, %v", v, err)
	}
	conf.Fresh, conf.Deadline, conf.Kernel = true, time.Minute, "/etc/os-release"
	if v, err = probe.KVM(t.Context(), conf); err != nil || v.Works || v.Reason == "" {
		t.Errorf("what is no kernel: %+v, %v", v, err)
	}
}

func TestAnInterruptedProbeShowsNothing(t *testing.T) {
	conf := emulated(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v, err := probe.KVM(ctx, conf); !errors.Is(err, context.Canceled) || v.Works {
		t.Errorf("got %+v, %v", v, err)
	}
	if list, err := os.ReadDir(conf.Dir); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}

func TestADeviceThatIsNotKVMIsNamed(t *testing.T) {
	for device, want := range map[string]string{"/dev/nothing": "is not there", "/dev/null": "is not the KVM that is known"} {
		v, err := probe.KVM(t.Context(), probe.KVMConfig{Device: device, Dir: t.TempDir()})
		if err != nil || v.Works || !strings.Contains(v.Reason, want) {
			t.Errorf("%s: %+v, %v", device, v, err)
		}
	}
}

func TestTheDoctorSaysWhatWorksHere(t *testing.T) {
	list := probe.Doctor(t.Context(), probe.DoctorConfig{
		Kernel: kernel(t), KernelID: "k", StateDir: t.TempDir(), MemoryDir: "/dev/shm/covey", UID: 232345, GID: 232345,
	})
	var out bytes.Buffer
	probe.Print(&out, list)
	t.Log("\n" + out.String())
	if !probe.Healthy(list) {
		t.Error("VM tests run here, so a host agent must be able to")
	}
	for _, name := range []string{"kernel", "page faults", "cgroups", "QEMU", "KVM"} {
		if !strings.Contains(out.String(), name) {
			t.Errorf("it says nothing of %s", name)
		}
	}
}

func TestTheDoctorFindsAMemoryDirectoryOnADisk(t *testing.T) {
	list := probe.Doctor(t.Context(), probe.DoctorConfig{MemoryDir: "/proc/covey"})
	if probe.Healthy(list) {
		t.Errorf("it found nothing wrong: %+v", list)
	}
}
