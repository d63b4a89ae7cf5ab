package plan

import "slices"

// What the parts of a score weigh. Without a spread key a score is 0 to 100. Having the snapshot outweighs a quarter more load: in the bench's trace that finds it
// nearly always and keeps the hosts less than half as unequal as chance does; much more weight would heap sandboxes on the holders.
const (
	weightCached = 15
	weightFree   = 60
	weightEven   = 25
	// Of the same spread key, one fewer on the host weighs more than all of the above; in the zone about as much.
	weightHost = 1000
	weightZone = 100
)

// rating is what speaks for a host that fits.
type rating struct {
	cached         bool
	load           float64 // of the scarcest resource, 0 to 1, with the sandbox there
	scarcest       string  // its name
	skew           float64 // between the loads of CPU and memory, 0 to 1
	spreads        bool    // the request has a spread key
	onHost, inZone int     // sandboxes of that key there
}

func (p *pick) rate(row int32) rating {
	v := p.v
	g := rating{spreads: p.r.SpreadKey != ""}
	if p.r.SnapshotID != "" {
		g.cached = p.cached(row)
	}
	total, left, ask := &v.cap[row], &v.left[row], &p.r.Resources
	cpu := share(total.VCPUs, left.VCPUs, ask.VCPUs)
	memory := share(total.MemoryMB, left.MemoryMB, ask.MemoryMB)
	g.load, g.scarcest = cpu, "vCPUs"
	if memory > g.load {
		g.load, g.scarcest = memory, "memory"
	}
	if disk := share(total.DiskMB, left.DiskMB, ask.DiskMB); disk > g.load {
		g.load, g.scarcest = disk, "disk"
	}
	if slots := share(total.Slots, left.Slots, ask.Slots); slots > g.load {
		g.load, g.scarcest = slots, "slots"
	}
	g.skew = max(cpu-memory, memory-cpu)
	if g.spreads {
		g.onHost, g.inZone = p.group.near(row, v.hosts[row].Zone)
	}
	return g
}

// cached tells whether a host has the snapshot. The list of all that have it stays in the processor's cache during a choice; the hosts' own lists do not.
func (p *pick) cached(row int32) bool {
	if p.v.holders != nil {
		_, has := slices.BinarySearch(p.holders, row)
		return has
	}
	_, has := slices.BinarySearch(p.v.hosts[row].Snapshots, p.r.SnapshotID)
	return has
}

// share is how much of a resource would be used, 0 to 1.
func share(total, left, ask int64) float64 {
	if total <= 0 {
		return 0
	}
	return min(1, float64(total-left+ask)/float64(total))
}

// total is the score; it is positive.
func (g rating) total() float64 {
	s := weightFree*(1-g.load) + weightEven*(1-g.skew)
	if g.cached {
		s += weightCached
	}
	if g.spreads {
		s += weightHost/float64(1+g.onHost) + weightZone/float64(1+g.inZone)
	}
	return s
}
