package qemu

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/cpu"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu/qmp"
)

func askedProcessors(t *testing.T, conf Config) processors {
	t.Helper()
	conf.Timeout = 20 * time.Second
	if err := conf.fill(); err != nil {
		t.Fatal(err)
	}
	p, err := askProcessors(conf, "7.2")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestQEMUIsAskedWhatGuestsHave(t *testing.T) {
	p := askedProcessors(t, Config{})
	want := append(cpu.Essential(), "popcnt", "rdrand", "sse4_2", "ssse3")
	if missing := cpu.Minus(want, p.plain); len(missing) > 0 || len(p.lacks) > 0 {
		t.Errorf("the emulated processor lacks %v; it has %v, and not %v", missing, p.plain, p.lacks)
	}
	if c := p.boot(nil); c.Model != emulated || len(c.Masked) > 0 || c.Machine != "microvm-7.2.2-tcg-"+emulated {
		t.Errorf("without a mask it is %+v", c)
	}
	// TCG does not have what a later processor has: it must not be promised.
	if p = askedProcessors(t, Config{CPU: "Skylake-Server-v4"}); slices.Contains(p.plain, "avx512f") || !slices.Contains(p.lacks, "avx512f") || !slices.Contains(p.plain, "avx2") {
		t.Errorf("of a Skylake under TCG there is %v, and not %v", p.plain, p.lacks)
	}
	if c := p.boot(nil); !strings.Contains(c.Model, ",-avx512f") {
		t.Errorf("its model is %s", c.Model)
	}
	if _, err := New(Config{CPU: "nonsense"}); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a model that there is not: %v", err)
	}
	if _, err := New(Config{Mask: []string{"sse4.2"}}); err == nil || !strings.Contains(err.Error(), `"sse4.2"`) {
		t.Errorf("a mask with QEMU's name: %v", err)
	}
}

func TestAMaskAndABaselineTakeFeaturesAwayFromWhatIsBooted(t *testing.T) {
	p := askedProcessors(t, Config{Mask: []string{"sse4_2", "popcnt"}})
	c := p.boot(nil)
	if c.Model != emulated+",-popcnt,-sse4.2" || !slices.Equal(c.Masked, []string{"popcnt", "sse4_2"}) || slices.Contains(c.Features, "sse4_2") {
		t.Errorf("with a mask it is %+v", c)
	}
	b := p.boot(cpu.Minus(p.plain, []string{"rdrand"}))
	if b.Model != emulated+",-popcnt,-rdrand,-sse4.2" || b.Machine != c.Machine {
		t.Errorf("with a baseline too it is %+v", b)
	}
	if err := p.fits(b); err != nil {
		t.Errorf("its own: %v", err)
	}
	if err := p.fits(p.former()); !errors.Is(err, vmm.ErrIncompatible) || !strings.Contains(err.Error(), "popcnt, sse4_2, which guests of this host cannot have") {
		t.Errorf("one without the mask: %v", err)
	}
	evil := b
	evil.Model = "Nehalem-v1 -device x"
	if err := p.fits(evil); !errors.Is(err, vmm.ErrIncompatible) {
		t.Errorf("a model that is none: %v", err)
	}
}

// TestABaselineUnderKVMIsLaidUponAProcessorThatEveryHostHas lets QEMU judge the model by TCG, which has it too.
func TestABaselineUnderKVMIsLaidUponAProcessorThatEveryHostHas(t *testing.T) {
	p := askedProcessors(t, Config{CPU: "max"})
	p.accel, p.host = vmm.KVM, "AuthenticAMD-25-1-1"
	baseline := cpu.Minus(p.plain, []string{"avx2", "lahf_lm", "cx16"})
	free, bound := p.boot(nil), p.boot(baseline)
	if !strings.HasSuffix(free.Machine, "-kvm-max(AuthenticAMD-25-1-1)") || !strings.HasSuffix(bound.Machine, "-kvm-kvm64-v1(AuthenticAMD)") || !slices.Equal(p.machines(), []string{free.Machine, bound.Machine}) {
		t.Errorf("the machines are %q and %q, what loads %q", free.Machine, bound.Machine, p.machines())
	}
	var got []string
	conf := Config{Timeout: 20 * time.Second}
	if err := conf.fill(); err != nil {
		t.Fatal(err)
	}
	err := interview(t.Context(), conf, func(c *qmp.Client) (err error) {
		got, err = expand(context.Background(), c, bound.Model)
		return err
	})
	if err != nil || !slices.Equal(got, bound.Features) {
		t.Errorf("%s has beyond the baseline %v and lacks %v (%v)", bound.Model, cpu.Minus(got, bound.Features), cpu.Minus(bound.Features, got), err)
	}
	if err := p.fits(bound); err != nil {
		t.Error(err)
	}
}
