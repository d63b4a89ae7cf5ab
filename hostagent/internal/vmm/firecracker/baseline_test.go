package firecracker_test

import (
	"context"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
)

func TestABaselineIsSetAfterTheMachineAndBeforeTheGuestStarts(t *testing.T) {
	const feature = "clflushopt"
	var mu sync.Mutex // guards paths and template
	var paths []string
	var template string
	s := newStage(t, func(c *firecracker.Config) {
		check := c.Trace
		c.Trace = func(x api.Exchange) {
			if check != nil {
				check(x)
			}
			mu.Lock()
			defer mu.Unlock()
			paths = append(paths, x.Path)
			if x.Path == "/cpu-config" {
				template = string(x.Request)
			}
		}
	})
	caps := s.driver.Capabilities()
	if !slices.Contains(caps.CPUFeatures, feature) {
		t.Skipf("guests of this machine cannot have %s: they have %v", feature, caps.CPUFeatures)
	}
	cfg := s.config("ok")
	cfg.Baseline = slices.DeleteFunc(slices.Clone(caps.CPUFeatures), func(f string) bool { return f == feature })
	vm, err := s.driver.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Kill(context.Background()) })
	mu.Lock()
	machine, cpu, start := slices.Index(paths, "/machine-config"), slices.Index(paths, "/cpu-config"), slices.Index(paths, "/actions")
	if machine < 0 || cpu < machine || start < cpu {
		t.Errorf("the requests are %q", paths)
	}
	if want := `"register":"ebx","bitmap":"0bxxxxxxxx0xxxxxxxxxxxxxxxxxxxxxxx"`; !strings.Contains(template, want) || strings.Count(template, "bitmap") != 1 {
		t.Errorf("the template is %s", template)
	}
	mu.Unlock()
	if got := vm.CPU(); !slices.Equal(got.Features, cfg.Baseline) || !slices.Equal(got.Masked, []string{feature}) || !slices.Contains(caps.Machines, got.Machine) || got.Machine == caps.Machine {
		t.Errorf("its processor is %+v", got)
	}
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := vm.SaveState(t.Context(), filepath.Join(t.TempDir(), "state")); err != nil {
		t.Fatal(err)
	}
}

// TestAPayloadWithABaselineIsSavedAndRestored has the real Firecracker take a template of several registers. The payload does not look at it.
func TestAPayloadWithABaselineIsSavedAndRestored(t *testing.T) {
	l := newLab(t, nil)
	g := l.place(t, nil)
	g.cfg.Baseline = slices.DeleteFunc(slices.Clone(l.driver.Capabilities().CPUFeatures), func(f string) bool {
		return slices.Contains([]string{"clflushopt", "gfni", "lahf_lm", "avx512f"}, f)
	})
	vm, err := l.driver.Boot(t.Context(), g.cfg)
	g = g.own(vm, err)
	g.awaitCount(5)
	base, state := g.save(nil)
	from := base.count()
	cpu := g.CPU()
	g.must(g.Kill(t.Context()))
	second := l.restore(t, base, state)
	if !reflect.DeepEqual(second.CPU(), cpu) || len(cpu.Masked) == 0 {
		t.Errorf("restored its processor is %+v, was %+v", second.CPU(), cpu)
	}
	second.must(second.Cont(t.Context()))
	second.awaitCount(from + 2)
}
