package baseline

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/coveyhq/covey/scheduler/plan"
	"github.com/coveyhq/covey/services/chassis/cpufeature"
)

// Baseline is what one pool's guests may have.
type Baseline struct {
	Label      string   `json:"label"`
	Features   []string `json:"features,omitempty"` // sorted; none: it was lifted
	Generation int64    `json:"generation"`
}

// FieldError is a request that cannot be met, by its field and what is legal.
type FieldError struct{ Field, Message string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Message }

var (
	legalLabel   = regexp.MustCompile(`^[A-Za-z0-9._/-]{1,63}=[^\x00-\x1f]{0,255}$`)
	legalFeature = regexp.MustCompile(`^[a-z0-9_]{1,32}$`)
)

// maxFeatures bounds a baseline; processors have about 150 features.
const maxFeatures = 1000

// essential are the features without which no guest runs. Host agents refuse to take them away too.
var essential = cpufeature.Essential()

// CheckLabel refuses what names no pool.
func CheckLabel(label string) error {
	if label != "" && !legalLabel.MatchString(label) {
		return &FieldError{"label", fmt.Sprintf("must be key=value like a host's label, or empty for all hosts, got %.80q", label)}
	}
	return nil
}

// Pool is the hosts of a pool, by id.
func Pool(hosts []plan.Host, label string) []plan.Host {
	var list []plan.Host
	for _, h := range hosts {
		if in(label, h.Labels) {
			list = append(list, h)
		}
	}
	slices.SortFunc(list, func(a, b plan.Host) int { return strings.Compare(a.ID, b.ID) })
	return list
}

func in(label string, labels map[string]string) bool {
	k, v, _ := strings.Cut(label, "=")
	got, has := labels[k]
	return label == "" || has && got == v
}

// Common is what all hosts have.
func Common(hosts []plan.Host) []string {
	var all []string
	for i, h := range hosts {
		if i == 0 {
			all = h.CPUFeatures
		}
		all = Both(all, h.CPUFeatures)
	}
	return all
}

// Both is what two sorted lists have in common, Minus what the first has beyond the other.
func Both(a, b []string) []string { return Minus(a, Minus(a, b)) }

// Minus: see Both.
func Minus(a, b []string) []string {
	var rest []string
	for _, f := range a {
		if _, has := slices.BinarySearch(b, f); !has {
			rest = append(rest, f)
		}
	}
	return rest
}

// Choose makes a pool's baseline of the features that are asked for, or with common of those that its hosts have in common. *FieldError.
func Choose(hosts []plan.Host, label string, features []string, common bool) (Baseline, error) {
	if err := CheckLabel(label); err != nil {
		return Baseline{}, err
	}
	pool := Pool(hosts, label)
	switch {
	case len(pool) == 0:
		return Baseline{}, &FieldError{"label", fmt.Sprintf("must be a label that a host has, or empty for all hosts; of %s none has %q", plural(len(hosts)), label)}
	case common && len(features) > 0:
		return Baseline{}, &FieldError{"features", "must be empty with common, which asks for what the hosts have in common"}
	case !common && len(features) == 0:
		return Baseline{}, &FieldError{"features", "must be given, or common be true; a baseline is lifted by clearing it"}
	case len(features) > maxFeatures:
		return Baseline{}, &FieldError{"features", fmt.Sprintf("must be at most %d, got %d", maxFeatures, len(features))}
	}
	all := Common(pool)
	if common {
		features = all
	}
	b := Baseline{Label: label, Features: slices.Compact(slices.Sorted(slices.Values(features)))}
	for _, f := range b.Features {
		if !legalFeature.MatchString(f) {
			return Baseline{}, &FieldError{"features", fmt.Sprintf("must be names as in /proc/cpuinfo, like sse4_2, got %.80q", f)}
		}
	}
	for _, h := range pool {
		if lacks := Minus(b.Features, h.CPUFeatures); len(lacks) > 0 {
			return Baseline{}, &FieldError{"features", fmt.Sprintf("must be features that every host of the pool has (%s); %s lacks %s", list(all), h.ID, list(lacks))}
		}
	}
	if lacks := Minus(essential, b.Features); len(lacks) > 0 {
		return Baseline{}, &FieldError{"features", fmt.Sprintf("must include what no guest runs without (%s), lack %s", list(essential), list(lacks))}
	}
	return b, nil
}

func list(features []string) string {
	if len(features) == 0 {
		return "none"
	}
	return strings.Join(features, ", ")
}

func plural(n int) string {
	if n == 1 {
		return "1 host"
	}
	return fmt.Sprintf("%d hosts", n)
}
