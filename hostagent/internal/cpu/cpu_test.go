package cpu

import (
	"slices"
	"testing"
)

func TestEachFeatureHasOneNameAndOneBit(t *testing.T) {
	names, bits := map[string]bool{}, map[Bit]string{}
	for _, w := range table {
		for _, f := range w.features {
			at := Bit{Leaf: w.leaf, Subleaf: w.subleaf, Register: w.register, Bit: f.bit}
			if names[f.name] || bits[at] != "" || f.bit > 31 {
				t.Errorf("%s at %+v: the name is taken, or the bit is by %q", f.name, at, bits[at])
			}
			names[f.name], bits[at] = true, f.name
		}
	}
	for f, n := range needs {
		if !names[f] || !names[n] {
			t.Errorf("%s needs %s: one of them is not in the table", f, n)
		}
	}
	if err := Check(essential); err != nil {
		t.Error(err)
	}
	if whole := Whole(essential); !slices.Equal(whole, essential) {
		t.Errorf("the essential ones are %v, and sorted and with what they need %v", essential, whole)
	}
	if err := Check([]string{"sse4.2"}); err == nil {
		t.Error("QEMU's name for it is taken for a feature's")
	}
}

func TestWhatNeedsAMissingFeatureIsMissingToo(t *testing.T) {
	has := []string{"xsave", "avx", "avx2", "avx512f", "avx512bw", "avx512vbmi", "fma", "sse2", "sse", "fxsr"}
	if got := Whole(slices.DeleteFunc(slices.Clone(has), func(f string) bool { return f == "avx2" })); !slices.Equal(got, []string{"avx", "fma", "fxsr", "sse", "sse2", "xsave"}) {
		t.Errorf("without avx2 there is %v", got)
	}
	if got := Limit([]string{"avx", "avx2", "xsave"}, []string{"xsave", "avx2"}); !slices.Equal(got, []string{"xsave"}) {
		t.Errorf("a baseline with avx2 and without avx leaves %v", got)
	}
	if got := Limit([]string{"avx"}, nil); !slices.Equal(got, []string{"avx"}) {
		t.Errorf("no baseline leaves %v", got)
	}
}

func TestTheSameFeaturesAreFoundHoweverTheyAreTold(t *testing.T) {
	want := []string{"fxsr", "pni", "sse", "sse2", "sse4_1", "sse4_2", "ssse3"}
	props := map[string]any{"sse4.2": true, "sse4.1": true, "ssse3": true, "pni": true, "sse2": true, "sse": true, "fxsr": true, "avx": false, "check": true, "family": 6.0}
	if got := FromQEMU(props); !slices.Equal(got, want) {
		t.Errorf("by QEMU's properties: %v", got)
	}
	if got := FromLinux(append([]string{"hypervisor", "rep_good"}, want...)); !slices.Equal(got, want) {
		t.Errorf("by Linux's flags: %v", got)
	}
	ask := func(leaf, subleaf uint32) Registers {
		var r Registers
		for _, f := range want {
			if b, _ := Where(f); b.Leaf == leaf && b.Subleaf == subleaf {
				r[b.Register] |= 1 << b.Bit
			}
		}
		return r
	}
	if got := FromCPUID(ask); !slices.Equal(got, want) {
		t.Errorf("by CPUID: %v", got)
	}
}
