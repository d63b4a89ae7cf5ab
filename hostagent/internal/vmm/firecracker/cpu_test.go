package firecracker

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/cpu"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

func TestATemplateClearsTheMaskedBitsAndNoOthers(t *testing.T) {
	got, err := json.Marshal(template([]string{"sse4_2", "avx512f", "avx2", "xsavec", "lm", "avx512_vnni"}))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"cpuid_modifiers":[` +
		`{"leaf":"0x1","subleaf":"0x0","flags":0,"modifiers":[{"register":"ecx","bitmap":"0bxxxxxxxxxxx0xxxxxxxxxxxxxxxxxxxx"}]},` +
		`{"leaf":"0x7","subleaf":"0x0","flags":1,"modifiers":[{"register":"ebx","bitmap":"0bxxxxxxxxxxxxxxx0xxxxxxxxxx0xxxxx"},{"register":"ecx","bitmap":"0bxxxxxxxxxxxxxxxxxxxx0xxxxxxxxxxx"}]},` +
		`{"leaf":"0xd","subleaf":"0x1","flags":1,"modifiers":[{"register":"eax","bitmap":"0bxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0x"}]},` +
		`{"leaf":"0x80000001","subleaf":"0x0","flags":0,"modifiers":[{"register":"edx","bitmap":"0bxx0xxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}]}]}`
	if string(got) != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestTheHostsFeaturesAreThoseThatItsGuestsCanHave(t *testing.T) {
	p, err := newProcessors(versionOf(t, "1.16.1", 10), []string{"sse4_2"})
	if err != nil {
		t.Fatal(err)
	}
	if missing := cpu.Minus(cpu.Essential(), p.plain); len(missing) > 0 {
		t.Errorf("it has %v, and not %v", p.plain, missing)
	}
	if slices.Contains(p.has, "sse4_2") {
		t.Error("what the mask takes away is still there")
	}
	t.Logf("%v", p.plain)
}

func TestABaselineMakesAStateThatOtherProcessorsOfTheVendorLoad(t *testing.T) {
	v := versionOf(t, "1.16.1", 10)
	rich := processors{version: v, plain: []string{"avx", "avx2", "xsave"}, has: []string{"avx", "avx2", "xsave"}, host: "GenuineIntel-6-143-8"}
	poor := processors{version: v, plain: []string{"avx", "xsave"}, has: []string{"avx", "xsave"}, host: "GenuineIntel-6-85-7"}
	free, bound := rich.boot(nil), rich.boot([]string{"avx", "xsave"})
	if slices.Contains(poor.machines(), free.Machine) || !slices.Contains(poor.machines(), bound.Machine) {
		t.Errorf("the machines are %q and %q, the other host loads %q", free.Machine, bound.Machine, poor.machines())
	}
	if err := poor.fits(free); !errors.Is(err, vmm.ErrIncompatible) || !strings.Contains(err.Error(), "avx2") {
		t.Errorf("what has avx2: %v", err)
	}
	if err := poor.fits(bound); err != nil {
		t.Errorf("what has none: %v", err)
	}
	if bound.Model != "host,-avx2" || !slices.Equal(bound.Masked, []string{"avx2"}) {
		t.Errorf("the processor is %+v", bound)
	}
}
