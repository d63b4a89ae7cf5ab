package plan

import (
	"fmt"
	"slices"
	"strings"
)

// NoHostError is a request that no host fits.
type NoHostError struct {
	// Asked is what was asked for; Free is the most that is left of each resource on any host that is otherwise suitable.
	Asked, Free Resources
	// Hopeless: waiting will not help, as every host lacks what does not change: labels, driver, machine model, CPU features, or being the one asked for.
	Hopeless bool
	message  string
}

// Error says what was asked, what is free, and what kept the hosts out.
func (e *NoHostError) Error() string { return e.message }

// Refuse explains that no host fits.
func Refuse(v *View, r *Request) *NoHostError {
	p := pick{v: v, r: r, group: v.spread[r.SpreadKey]}
	counts, missing := make([]int, len(filters)), make([][]string, len(filters))
	e := &NoHostError{Asked: r.Resources, Hopeless: true}
	suitable := false
	var lost []int32
	for row, h := range v.hosts {
		if h == nil {
			continue
		}
		f := p.first(int32(row))
		if f < 0 {
			continue // It fits now; the view has changed since.
		}
		counts[f]++
		if filters[f].missing != nil {
			missing[f] = union(missing[f], filters[f].missing(&p, int32(row)))
		}
		if p.v.why[int32(row)] != "" && filters[f].name == Lost.String() {
			lost = append(lost, int32(row))
		}
		e.Hopeless = e.Hopeless && filters[f].lasting
		if f == len(filters)-1 {
			suitable = true
			e.Free = e.Free.most(v.left[row])
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "no host fits %s", r.Resources)
	if _, known := v.byID[r.HostID]; v.Len() == 0 || r.HostID != "" && !known {
		e.Hopeless = false // It may be heard from at any time.
		e.message = b.String() + ": no host is known"
		if v.Len() > 0 {
			e.message = fmt.Sprintf("%s: host %s, which was asked for, is not known", b.String(), r.HostID)
		}
		return e
	}
	if row, known := v.byID[r.HostID]; known {
		if p.first(row) >= 0 {
			fmt.Fprintf(&b, ": %s, which was asked for, %s", r.HostID, strings.Join(p.verdict(row).Reasons, "; "))
		}
		if slices.Contains(lost, row) {
			b.WriteString(whatToDo)
		}
		e.message = b.String()
		return e
	}
	sep := fmt.Sprintf(": of %s ", plural(v.Len(), "host"))
	for f, n := range counts {
		if n > 0 {
			fmt.Fprintf(&b, "%s%s %s", sep, isAre(n), strings.TrimSpace(filters[f].name+" "+strings.Join(missing[f], " or ")))
			sep = ", "
		}
	}
	if suitable {
		fmt.Fprintf(&b, "; the most that is free on one is %s", e.Free)
	}
	b.WriteString(p.sayWhich(lost))
	e.message = b.String()
	return e
}

const (
	// maxLost is how many lost hosts are named.
	maxLost = 3
	// whatToDo follows what is said of lost hosts.
	whatToDo = "; see that its host agent runs and reaches the schedulers, and try again once `covey hosts` shows it READY"
)

// sayWhich names the hosts that would otherwise count but are lost, why, since when, and what to do next.
func (p *pick) sayWhich(lost []int32) string {
	if len(lost) == 0 {
		return ""
	}
	slices.SortFunc(lost, func(a, b int32) int { return compare(p.v.hosts[a].ID, p.v.hosts[b].ID) })
	var b strings.Builder
	for _, row := range lost[:min(len(lost), maxLost)] {
		fmt.Fprintf(&b, "; %s is lost: %s", p.v.hosts[row].ID, p.v.why[row])
	}
	if more := len(lost) - maxLost; more > 0 {
		fmt.Fprintf(&b, "; and so are %d more", more)
	}
	return b.String() + whatToDo
}

// union adds what is new to a list.
func union(list, more []string) []string {
	for _, m := range more {
		if !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

func isAre(n int) string {
	if n == 1 {
		return "1 is"
	}
	return fmt.Sprintf("%d are", n)
}

// first is the first filter that a host does not pass; -1 if it passes all.
func (p *pick) first(row int32) int {
	for i, f := range filters {
		if f.fails(p, row) {
			return i
		}
	}
	return -1
}

// most is the larger of each resource, and not less than nothing.
func (r Resources) most(o Resources) Resources {
	return Resources{max(r.VCPUs, o.VCPUs, 0), max(r.MemoryMB, o.MemoryMB, 0), max(r.DiskMB, o.DiskMB, 0), max(r.Slots, o.Slots, 0)}
}
