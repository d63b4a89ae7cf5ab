package machine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestABaselineHoldsForWhatIsBootedAndOutlivesTheAgent(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	h := w.host(t, dir)
	spec := spec("sb_1")
	before, err := h.templateKey(t.Context(), spec, h.Baseline().Features)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetBaseline(Baseline{Features: []string{"popcnt"}, Generation: 7}); err != nil {
		t.Fatal(err)
	}
	after, err := h.templateKey(t.Context(), spec, h.Baseline().Features)
	if err != nil || after == before {
		t.Errorf("an image's template is called %s before and %s after (%v)", before, after, err)
	}
	for _, old := range []Baseline{{Generation: 6}, {Features: []string{"aes"}}} {
		if err := h.SetBaseline(old); err != nil || !slices.Equal(h.Baseline().Features, []string{"popcnt"}) {
			t.Errorf("older news make it %v (%v)", h.Baseline(), err)
		}
	}
	if _, err := h.Start(t.Context(), spec, ""); err != nil {
		t.Fatal(err)
	}
	m, err := h.Find("sb_1")
	if err != nil {
		t.Fatal(err)
	}
	if man := m.manifest(SnapshotRequest{ID: "snap_1"}); !slices.Equal(man.CPUFeatures, []string{"popcnt"}) || man.Machine != "m1" {
		t.Errorf("its snapshot's manifest says %v, %s", man.CPUFeatures, man.Machine)
	}
	if rec := m.record(m.hold); rec.CPU == nil || !slices.Equal(rec.CPU.Masked, []string{"aes"}) {
		t.Errorf("the journal has %+v", rec.CPU)
	}
	again, err := openBaseline(filepath.Join(dir, "settings"))
	if err != nil || again.get().Generation != 7 || !slices.Equal(again.get().Features, []string{"popcnt"}) {
		t.Errorf("the next agent has %+v (%v)", again, err)
	}
	if err := h.SetBaseline(Baseline{Generation: 8}); err != nil || len(h.Baseline().Features) != 0 {
		t.Errorf("lifted, it is %v (%v)", h.Baseline(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "settings", baselineRecord+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openBaseline(filepath.Join(dir, "settings")); err == nil || !strings.Contains(err.Error(), "what to do") {
		t.Errorf("a damaged record: %v", err)
	}
}

func TestWhatAHostsGuestsCannotHaveIsRefusedBeforeAnythingIsMade(t *testing.T) {
	h := newWorld().newHost(t)
	for _, x := range []struct {
		man  Manifest
		want string
	}{
		{Manifest{Driver: "fake", Machine: "m0", Accel: "tcg", CPUFeatures: []string{"aes"}}, ""},
		{Manifest{Driver: "fake", Machine: "m1", Accel: "tcg"}, ""},
		{Manifest{Driver: "fake", Machine: "m2", Accel: "tcg"}, "belongs to machine model m2; this host has m1 and m0"},
		{Manifest{Driver: "fake", Machine: "m1", Accel: "tcg", CPUFeatures: []string{"aes", "avx2", "avx512f"}}, "its processor has avx2, avx512f, which"},
	} {
		err := h.compatible(x.man)
		restore := (*RestoreError)(nil)
		if x.want == "" && err != nil || x.want != "" && (!errors.As(err, &restore) || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%+v: %v, want %q", x.man, err, x.want)
		}
	}
}
