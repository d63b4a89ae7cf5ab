package main

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/coveyhq/covey/scheduler/plan"
)

const (
	// traceStarts is how many sandboxes a trace starts, and traceWarm after how many it is looked at.
	traceStarts, traceWarm = 60_000, 20_000
	// traceFull is how full the fleet is on average, by memory.
	traceFull = 0.85
	// traceCache is how many snapshots a host keeps.
	traceCache = 16
)

// large is what there should be room for: where it fits nowhere although enough is free in all, the room is stranded.
var large = plan.Resources{VCPUs: 16, MemoryMB: 32768, DiskMB: 8192, Slots: 1}

// policy chooses a host; false where none fits.
type policy struct {
	name   string
	choose func(v *plan.View, r *plan.Request, rnd *rand.Rand) (int, bool)
}

var policies = []policy{
	{"", func(v *plan.View, r *plan.Request, rnd *rand.Rand) (int, bool) {
		d, ok := plan.Choose(v, r, rnd)
		return d.Row, ok
	}},
	{"random", randomFit},
	{"least_loaded", leastLoaded},
}

// comparePolicies runs the same trace with each policy and says how the fleet fared.
func comparePolicies(hosts int) map[string]float64 {
	m := map[string]float64{}
	fmt.Printf("  %-14s %10s %10s %12s %10s   (%d starts on %d hosts, %.0f %% full)\n", "policy", "refused", "stranded", "load stddev", "cached", traceStarts, hosts, 100*traceFull)
	for _, p := range policies {
		q := newTrace(hosts).run(p)
		name, suffix := p.name, "_"+p.name
		if name == "" {
			name, suffix = "covey", ""
		}
		fmt.Printf("  %-14s %9.2f%% %9.1f%% %12.3f %9.1f%%\n", name, 100*q.refused, 100*q.stranded, q.stddev, 100*q.cached)
		m["scheduler_refused_share"+suffix] = q.refused
		m["scheduler_stranded_share"+suffix] = q.stranded
		m["scheduler_load_stddev"+suffix] = q.stddev
		m["scheduler_cached_share"+suffix] = q.cached
	}
	return m
}

// quality is how a fleet fared.
type quality struct {
	refused  float64 // share of the starts for which no host was found
	stranded float64 // share of the free room that is too scattered for large sandboxes
	stddev   float64 // of the hosts' loads, each 0 to 1
	cached   float64 // share of the starts on a host that had the snapshot
}

// trace is a simulated day: sandboxes of mixed sizes start in a random order and live for very different times.
type trace struct {
	rnd     *rand.Rand // of the trace, the same for each policy
	fleet   *plan.Fleet
	hosts   []*plan.Host
	ends    endings
	meanGap float64
}

// ending is when a sandbox ends.
type ending struct {
	at  float64
	row int
	res plan.Resources
}

type endings []ending

func (e endings) Len() int           { return len(e) }
func (e endings) Less(i, j int) bool { return e[i].at < e[j].at }
func (e endings) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }

// Push implements heap.Interface.
func (e *endings) Push(x any) { *e = append(*e, x.(ending)) }

// Pop implements heap.Interface.
func (e *endings) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func newTrace(hosts int) *trace {
	t := &trace{rnd: rand.New(rand.NewPCG(1, 2)), fleet: plan.NewFleet()}
	var memory, asked float64
	for i := range hosts {
		h := simulatedHost(t.rnd, i)
		// Smaller, so that the trace fills them.
		h.Capacity = plan.Resources{VCPUs: h.Capacity.VCPUs / 4, MemoryMB: h.Capacity.MemoryMB / 2, DiskMB: h.Capacity.DiskMB, Slots: h.Capacity.Slots}
		h.Used, h.Snapshots, h.Labels = plan.Resources{}, nil, nil
		memory += float64(h.Capacity.MemoryMB)
		t.fleet.Put(h)
		t.hosts = append(t.hosts, h)
	}
	for _, s := range sizes {
		asked += float64(s.MemoryMB) / float64(len(sizes))
	}
	// Sandboxes live for 1 on average: as many are alive as start in that time.
	t.meanGap = asked / (traceFull * memory)
	return t
}

// lifetime has mean 1: most sandboxes are short, a few very long.
func (t *trace) lifetime() float64 {
	const sigma = 1.5
	return math.Exp(sigma*t.rnd.NormFloat64() - sigma*sigma/2)
}

func (t *trace) run(p policy) quality {
	var q quality
	choices := rand.New(rand.NewPCG(3, 4))
	now, looks, counted := 0.0, 0.0, 0.0
	v := t.fleet.View()
	for i := range traceStarts {
		now += t.rnd.ExpFloat64() * t.meanGap
		for len(t.ends) > 0 && t.ends[0].at <= now {
			e := heap.Pop(&t.ends).(ending)
			t.fleet.Release(e.row, e.res, "")
		}
		r := &plan.Request{Resources: sizes[t.rnd.IntN(len(sizes))], SnapshotID: snapshotName(t.rnd)}
		life := t.lifetime()
		row, ok := p.choose(v, r, choices)
		if i >= traceWarm {
			counted++
		}
		switch {
		case !ok && i >= traceWarm:
			q.refused++
		case ok:
			if t.start(row, r.SnapshotID) && i >= traceWarm {
				q.cached++
			}
			t.fleet.Reserve(row, r.Resources, "")
			heap.Push(&t.ends, ending{now + life, row, r.Resources})
		}
		if i >= traceWarm && i%500 == 0 {
			looks++
			stranded, stddev := t.look()
			q.stranded += stranded
			q.stddev += stddev
		}
	}
	return quality{q.refused / counted, q.stranded / looks, q.stddev / looks, q.cached / counted}
}

// start notes that a host has a snapshot now, and forgets its oldest; it tells whether the host had it.
func (t *trace) start(row int, snapshot string) bool {
	h := *t.hosts[row]
	if slices.Contains(h.Snapshots, snapshot) {
		return true
	}
	// Sorted, as the fleet wants it; which one goes is as good as random.
	list := slices.Clone(h.Snapshots)
	if len(list) == traceCache {
		list = slices.Delete(list, t.oldest(row), t.oldest(row)+1)
	}
	at, _ := slices.BinarySearch(list, snapshot)
	h.Snapshots = slices.Insert(list, at, snapshot)
	t.hosts[row] = &h
	t.fleet.Put(&h)
	return false
}

// oldest is which of a host's snapshots goes; the same for each policy.
func (t *trace) oldest(row int) int { return row % traceCache }

// look measures the fleet as it is.
func (t *trace) look() (stranded, stddev float64) {
	v := t.fleet.View()
	fits, freeCPU, freeMemory := int64(0), int64(0), int64(0)
	var sum, squares float64
	for row := range t.hosts {
		left := v.Left(row)
		freeCPU, freeMemory = freeCPU+left.VCPUs, freeMemory+left.MemoryMB
		fits += min(left.VCPUs/large.VCPUs, left.MemoryMB/large.MemoryMB)
		l := load(v, row, plan.Resources{})
		sum, squares = sum+l, squares+l*l
	}
	n := float64(len(t.hosts))
	ideal := min(float64(freeCPU)/float64(large.VCPUs), float64(freeMemory)/float64(large.MemoryMB))
	return 1 - float64(fits)/max(ideal, 1), math.Sqrt(max(0, squares/n-sum/n*sum/n))
}

// load is how full a host would be in its scarcest resource.
func load(v *plan.View, row int, ask plan.Resources) float64 {
	total, left := v.Capacity(row), v.Left(row)
	return max(share(total.VCPUs, left.VCPUs-ask.VCPUs), share(total.MemoryMB, left.MemoryMB-ask.MemoryMB),
		share(total.DiskMB, left.DiskMB-ask.DiskMB), share(total.Slots, left.Slots-ask.Slots))
}

func share(total, left int64) float64 { return float64(total-left) / float64(total) }

// randomFit takes any host that fits.
func randomFit(v *plan.View, r *plan.Request, rnd *rand.Rand) (int, bool) {
	n := v.Len()
	from := rnd.IntN(n)
	for i := range n {
		row := (from + i) % n
		if left := v.Left(row); r.Resources.Fits(&left) {
			return row, true
		}
	}
	return 0, false
}

// leastLoaded looks at every host.
func leastLoaded(v *plan.View, r *plan.Request, _ *rand.Rand) (int, bool) {
	best, at := math.Inf(1), -1
	for row := range v.Len() {
		if left := v.Left(row); r.Resources.Fits(&left) {
			if l := load(v, row, r.Resources); l < best {
				best, at = l, row
			}
		}
	}
	return at, at >= 0
}
