package cpu

import "testing"

func TestAProcessorIsNamedByVendorFamilyModelAndStepping(t *testing.T) {
	const one = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Some Xeon\nstepping\t: 8\n"
	for _, text := range []string{one, one + "\n" + one} {
		if got := nameOf(text); got != "GenuineIntel-6-143-8" {
			t.Errorf("it is %q", got)
		}
	}
	if Host() == "" {
		t.Error("this machine's has no name")
	}
}
