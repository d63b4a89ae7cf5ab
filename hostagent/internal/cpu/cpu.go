package cpu

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// index finds a feature by its name.
var index = func() map[string]Bit {
	m := map[string]Bit{}
	for _, w := range table {
		for _, f := range w.features {
			m[f.name] = Bit{Leaf: w.leaf, Subleaf: w.subleaf, Register: w.register, Bit: f.bit, qemu: f.qemu}
		}
	}
	return m
}()

// Bit is where CPUID tells of a feature.
type Bit struct {
	Leaf, Subleaf uint32
	Register      Register
	Bit           uint8
	qemu          string
}

// Where finds a feature; ok is false where no feature has that name.
func Where(name string) (b Bit, ok bool) {
	b, ok = index[name]
	return b, ok
}

// Check refuses names that are no features'.
func Check(names []string) error {
	for _, n := range names {
		if _, ok := index[n]; !ok {
			return fmt.Errorf("must be features by their names in /proc/cpuinfo, like sse4_2 or avx512f, got %q", n)
		}
	}
	return nil
}

// Essential are the features without which no guest runs.
func Essential() []string { return slices.Clone(essential) }

// QEMU is QEMU's name for a feature.
func QEMU(name string) string {
	if q := index[name].qemu; q != "" {
		return q
	}
	return name
}

// FromQEMU are the features that a processor of QEMU's has, by its properties.
func FromQEMU(props map[string]any) []string {
	var list []string
	for name := range index {
		if props[QEMU(name)] == true {
			list = append(list, name)
		}
	}
	return Whole(list)
}

// Registers are what CPUID answers.
type Registers [4]uint32

// FromCPUID are the features that CPUID tells of.
func FromCPUID(ask func(leaf, subleaf uint32) Registers) []string {
	var list []string
	for name, b := range index {
		if ask(b.Leaf, b.Subleaf)[b.Register]&(1<<b.Bit) != 0 {
			list = append(list, name)
		}
	}
	return Whole(list)
}

// FromLinux are the features among the flags of /proc/cpuinfo.
func FromLinux(flags []string) []string {
	return Whole(slices.DeleteFunc(slices.Clone(flags), func(f string) bool { _, ok := index[f]; return !ok }))
}

// Whole sorts features and leaves out those that need one which is missing.
func Whole(list []string) []string {
	has := map[string]bool{}
	for _, f := range list {
		has[f] = true
	}
	for changed := true; changed; {
		changed = false
		for f := range has {
			if n := needs[f]; n != "" && !has[n] {
				delete(has, f)
				changed = true
			}
		}
	}
	return slices.Sorted(maps.Keys(has))
}

// Minus is what list has beyond other; both and the result are sorted.
func Minus(list, other []string) []string {
	var rest []string
	for _, f := range list {
		if _, has := slices.BinarySearch(other, f); !has {
			rest = append(rest, f)
		}
	}
	return rest
}

// Common is what both lists have; they and the result are sorted.
func Common(a, b []string) []string { return Minus(a, Minus(a, b)) }

// Limit is what a processor with these features has left under a baseline, if there is one: see the package's vocabulary.
func Limit(features, baseline []string) []string {
	if len(baseline) == 0 {
		return features
	}
	return Whole(Common(features, slices.Sorted(slices.Values(baseline))))
}

// Join names features in a sentence.
func Join(list []string) string { return strings.Join(list, ", ") }
