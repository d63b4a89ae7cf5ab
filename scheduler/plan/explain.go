package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Verdict is what was found for one host.
type Verdict struct {
	HostID string
	Fits   bool
	// Reasons are sentences about the host: why not, or what counts for it.
	Reasons []string
	Score   float64 // 0 where it does not fit
}

// Explanation says for every host why it would or would not take a sandbox.
type Explanation struct {
	// Verdicts, best first, then those that do not fit, by id.
	Verdicts []Verdict
	// Chosen is the best host; empty if none fits.
	Chosen  string
	Summary string // one sentence
}

// Explain looks at every host.
func Explain(v *View, r *Request) Explanation {
	p := pick{v: v, r: r, group: v.spread[r.SpreadKey]}
	var e Explanation
	for _, row := range v.Rows() {
		e.Verdicts = append(e.Verdicts, p.verdict(int32(row)))
	}
	slices.SortStableFunc(e.Verdicts, func(a, b Verdict) int {
		switch {
		case a.Score > b.Score:
			return -1
		case a.Score < b.Score:
			return 1
		}
		return 0
	})
	if len(e.Verdicts) > 0 && e.Verdicts[0].Fits {
		fit := 0
		for _, w := range e.Verdicts {
			if w.Fits {
				fit++
			}
		}
		e.Chosen = e.Verdicts[0].HostID
		e.Summary = fmt.Sprintf("%s fits best: it %s; %s.", e.Chosen, strings.Join(e.Verdicts[0].Reasons, ", "), ofHosts(fit, v.Len(), "fits", "fit"))
		return e
	}
	e.Summary = Refuse(v, r).Error()
	return e
}

func ofHosts(n, all int, one, many string) string {
	verb := many
	if n == 1 {
		verb = one
	}
	return fmt.Sprintf("%d of %s %s", n, plural(all, "host"), verb)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (p *pick) verdict(row int32) Verdict {
	h := p.v.hosts[row]
	w := Verdict{HostID: h.ID}
	for _, f := range filters {
		if f.fails(p, row) {
			w.Reasons = append(w.Reasons, f.why(p, row))
		}
	}
	if len(w.Reasons) > 0 {
		return w
	}
	g := p.rate(row)
	w.Fits, w.Score, w.Reasons = true, g.total(), g.sentences(p.r, h)
	return w
}

// sentences are what counts for a host, to follow "it".
func (g rating) sentences(r *Request, h *Host) []string {
	var out []string
	if r.SnapshotID != "" {
		if g.cached {
			out = append(out, "has the snapshot's data")
		} else {
			out = append(out, "would have to fetch the snapshot's data")
		}
	}
	out = append(out, fmt.Sprintf("would be %.0f%% full (%s)", 100*g.load, g.scarcest))
	if g.spreads {
		out = append(out, fmt.Sprintf("has %d of the same spread key, its zone %d", g.onHost, g.inZone))
	}
	if r.KernelID != "" && h.KernelID != "" && r.KernelID != h.KernelID {
		out = append(out, "would boot another kernel if the snapshot's disk alone were asked for")
	}
	return out
}

// filter is one reason for which a host may not fit.
type filter struct {
	name string // of those that it turns away, to follow "3 are"
	// fails tells whether a host is turned away, and why says so, to follow the host's name.
	fails func(p *pick, row int32) bool
	why   func(p *pick, row int32) string
	// missing is what of it the host lacks, to follow the name; may be nil.
	missing func(p *pick, row int32) []string
	// lasting: waiting does not change it.
	lasting bool
}

// filters are all there are, in the order in which they are counted.
var filters = []filter{
	{"not the one that was asked for", (*pick).another, (*pick).sayAnother, nil, true},
	{"without label", (*pick).lacksLabels, (*pick).sayLabels, (*pick).missingLabels, true},
	{"without driver", (*pick).lacksDriver, (*pick).sayDriver, func(p *pick, _ int32) []string { return []string{p.r.Driver} }, true},
	{"without machine model", (*pick).lacksMachine, (*pick).sayMachine, func(p *pick, _ int32) []string { return []string{p.r.Machine} }, true},
	{"without CPU feature", (*pick).lacksFeatures, (*pick).sayFeatures, (*pick).missingFeatures, true},
	standing(Lost), standing(Cordoned), standing(Draining),
	{"among those that have refused", (*pick).excluded, (*pick).sayExcluded, nil, false},
	{"with a sandbox that it must be apart from", (*pick).crowded, (*pick).sayCrowded, nil, false},
	{"too full", (*pick).full, (*pick).sayFull, nil, false},
}

func standing(s State) filter {
	return filter{
		name: s.String(), fails: func(p *pick, row int32) bool { return p.v.state[row] == s },
		why: func(p *pick, row int32) string {
			if why := p.v.why[row]; why != "" && s == Lost {
				return "is lost: " + why
			}
			return "is " + s.String()
		},
	}
}

func (p *pick) another(row int32) bool { return p.r.HostID != "" && p.r.HostID != p.v.hosts[row].ID }

func (p *pick) sayAnother(int32) string { return "is not " + p.r.HostID + ", which was asked for" }

func (p *pick) lacksLabels(row int32) bool { return !p.v.hosts[row].labelled(p.r.Labels) }

func (p *pick) sayLabels(row int32) string {
	lacks := p.missingLabels(row)
	for i, label := range lacks {
		k, _, _ := strings.Cut(label, "=")
		if got, has := p.v.hosts[row].Labels[k]; has {
			lacks[i] = fmt.Sprintf("%s (it is %s)", label, got)
		}
	}
	return "lacks label " + strings.Join(lacks, ", ")
}

// missingLabels are those that a host lacks, by key.
func (p *pick) missingLabels(row int32) (lacks []string) {
	for _, k := range slices.Sorted(maps.Keys(p.r.Labels)) {
		if got, has := p.v.hosts[row].Labels[k]; !has || got != p.r.Labels[k] {
			lacks = append(lacks, k+"="+p.r.Labels[k])
		}
	}
	return lacks
}

func (p *pick) lacksDriver(row int32) bool { return !p.v.hosts[row].drives(p.r.Driver) }

func (p *pick) sayDriver(row int32) string {
	return fmt.Sprintf("has no driver %s, only %s", p.r.Driver, strings.Join(p.v.hosts[row].Drivers, ", "))
}

// lacksMachine leaves hosts without the driver to the filter before it.
func (p *pick) lacksMachine(row int32) bool {
	return !p.v.hosts[row].loads(p.r.Machine) && !p.lacksDriver(row)
}

func (p *pick) sayMachine(row int32) string {
	h := p.v.hosts[row]
	return fmt.Sprintf("restores %s machine %s, the snapshot needs %s", strings.Join(h.Drivers, ", "), strings.Join(h.Machines, ", "), p.r.Machine)
}

func (p *pick) lacksFeatures(row int32) bool { return !p.v.hosts[row].features(p.r.CPUFeatures) }

func (p *pick) sayFeatures(row int32) string {
	return "lacks " + strings.Join(p.missingFeatures(row), ", ")
}

func (p *pick) missingFeatures(row int32) (lacks []string) {
	for _, f := range p.r.CPUFeatures {
		if !p.v.hosts[row].features([]string{f}) {
			lacks = append(lacks, f)
		}
	}
	return lacks
}

func (p *pick) sayExcluded(int32) string { return "has refused it already" }

func (p *pick) sayCrowded(int32) string {
	return "has a sandbox that it must be apart from (anti-affinity)"
}

func (p *pick) full(row int32) bool { return !p.r.Resources.Fits(&p.v.left[row]) }

func (p *pick) sayFull(row int32) string {
	left, total, ask := p.v.left[row], p.v.cap[row], p.r.Resources
	var lacks []string
	for _, x := range []struct {
		left, total, ask int64
		what             string
	}{
		{left.VCPUs, total.VCPUs, ask.VCPUs, "vCPUs"}, {left.MemoryMB, total.MemoryMB, ask.MemoryMB, "MiB of memory"},
		{left.DiskMB, total.DiskMB, ask.DiskMB, "MiB of disk"}, {left.Slots, total.Slots, ask.Slots, "slots"},
	} {
		if x.ask > x.left {
			lacks = append(lacks, fmt.Sprintf("%d of %d %s free", max(x.left, 0), x.total, x.what))
		}
	}
	return "has only " + strings.Join(lacks, " and ")
}
