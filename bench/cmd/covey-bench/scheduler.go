package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/scheduler/book"
	"github.com/coveyhq/covey/scheduler/plan"
)

const (
	// schedPlacements is how many placements are timed at once.
	schedPlacements = 50_000
	// schedLive is how many reservations are held at any time, for each host.
	schedLive = 4
)

// benchScheduler measures the scheduler's core with simulated hosts: how many placements one core makes, reservations and their ends included, and how
// good they are. No mesh is needed.
func benchScheduler(ctx context.Context, e *env) (map[string]float64, error) {
	m := map[string]float64{}
	// One core, which nothing but this uses.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	perOp := map[string]float64{}
	for _, size := range []struct {
		name  string
		hosts int
	}{{"1k", 1000}, {"10k", 10000}} {
		var rate, p99, beat series
		for run := range e.runs {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			r, err := timePlacements(size.hosts, uint64(run+1))
			if err != nil {
				return nil, err
			}
			rate, p99, beat = append(rate, r.perSecond), append(p99, r.p99), append(beat, r.beat)
		}
		rate.row(size.name+" hosts: placements", "/s")
		p99.row(size.name+" hosts: p99 of one placement", "us")
		beat.row(size.name+" hosts: one heartbeat", "us")
		fmt.Printf("  %-36s %9.1f %% of the core\n", size.name+" hosts: heartbeats every 2 s take", beat.median()*float64(size.hosts)/2/1e4)
		m["scheduler_"+size.name+"_per_s"] = rate.median()
		m["scheduler_"+size.name+"_p99_us"] = p99.median()
		perOp[size.name] = 1 / rate.median()
	}
	m["scheduler_growth_ratio"] = perOp["10k"] / perOp["1k"]
	fmt.Printf("  %-36s %9.2f times (hosts: 10 times)\n", "growth of a placement's cost", m["scheduler_growth_ratio"])
	for name, v := range comparePolicies(1000) {
		m[name] = v
	}
	return m, nil
}

// placing is what one run gave.
type placing struct {
	perSecond float64
	p99, beat float64 // microseconds
}

// timePlacements places and releases sandboxes on a fleet that is two thirds full.
func timePlacements(hosts int, seed uint64) (placing, error) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	now := time.Unix(0, 0)
	b := book.New(book.Config{Seed: seed, Now: func() time.Time { return now }})
	fleet := make([]*plan.Host, hosts)
	for i := range fleet {
		fleet[i] = simulatedHost(rnd, i)
		b.Beat(fleet[i], nil)
	}
	live := make([]string, schedLive*hosts) // a ring of reservations
	next := 0
	place := func(r *plan.Request) error {
		if live[next] != "" {
			b.Release(live[next])
		}
		p, err := b.Place(r)
		live[next], next = p.ReservationID, (next+1)%len(live)
		return err
	}
	requests := make([]*plan.Request, schedPlacements)
	for i := range requests {
		requests[i] = simulatedRequest(rnd, i)
	}
	for i := range live {
		if err := place(renamed(requests[i%len(requests)], fmt.Sprint("warm", i))); err != nil {
			return placing{}, err
		}
	}
	took := make([]time.Duration, len(requests))
	runtime.GC()
	began := cpuTime()
	for i, r := range requests {
		t := time.Now()
		if err := place(r); err != nil {
			return placing{}, err
		}
		took[i] = time.Since(t)
	}
	all := cpuTime() - began
	slices.Sort(took)
	began = cpuTime()
	for _, h := range fleet {
		again := *h
		b.Beat(&again, nil)
	}
	return placing{
		perSecond: float64(len(requests)) / all.Seconds(), p99: micros(took[len(took)*99/100]),
		beat: micros(cpuTime()-began) / float64(hosts),
	}, nil
}

// cpuTime is what this process has used. Rates are by it and not by the clock, as other processes may use the core too.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // Of a constant argument.
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// simulatedHost is one of three sizes, about half full, with some snapshots.
func simulatedHost(rnd *rand.Rand, i int) *plan.Host {
	cpus := []int64{32, 64, 128}[rnd.IntN(3)]
	capacity := plan.Resources{VCPUs: 4 * cpus, MemoryMB: 4096 * cpus, DiskMB: 100_000 * cpus, Slots: 16 * cpus}
	h := &plan.Host{
		ID: fmt.Sprintf("host-%05d", i), Address: "10.0.0.1:7000", Zone: fmt.Sprint("zone-", i%3), State: plan.Ready, Capacity: capacity,
		Labels: map[string]string{"pool": []string{"general", "burst"}[rnd.IntN(2)]}, CPUFeatures: []string{"aes", "avx", "avx2", "sse4_2"},
		Drivers: []string{"firecracker/kvm", "qemu/kvm"},
	}
	full := 0.3 + 0.4*rnd.Float64()
	h.Used = plan.Resources{
		VCPUs: int64(full * float64(capacity.VCPUs)), MemoryMB: int64(full * float64(capacity.MemoryMB)),
		DiskMB: int64(full * float64(capacity.DiskMB)), Slots: int64(full * float64(capacity.Slots)),
	}
	for range 20 {
		h.Snapshots = append(h.Snapshots, snapshotName(rnd))
	}
	slices.Sort(h.Snapshots)
	h.Snapshots = slices.Compact(h.Snapshots)
	return h
}

// simulatedRequest starts from a snapshot, needs a CPU feature, and now and then a label or a spread key.
func simulatedRequest(rnd *rand.Rand, i int) *plan.Request {
	r := &plan.Request{
		SandboxID: fmt.Sprint("sb_", i), Resources: sizes[rnd.IntN(len(sizes))], SnapshotID: snapshotName(rnd), CPUFeatures: []string{"avx2"}, Driver: "qemu",
	}
	if rnd.IntN(4) == 0 {
		r.Labels = map[string]string{"pool": "general"}
	}
	if rnd.IntN(10) == 0 {
		r.SpreadKey = fmt.Sprint("key-", rnd.IntN(100))
	}
	return r
}

// snapshotName is one of 500, some far more popular than others.
func snapshotName(rnd *rand.Rand) string {
	x := rnd.Float64()
	return fmt.Sprintf("snap_%03d", int(500*x*x*x))
}

// sizes are what sandboxes ask for: small, middling, large, and some that want much of one thing.
var sizes = []plan.Resources{
	{VCPUs: 1, MemoryMB: 512, DiskMB: 2048, Slots: 1}, {VCPUs: 1, MemoryMB: 512, DiskMB: 2048, Slots: 1}, {VCPUs: 1, MemoryMB: 1024, DiskMB: 2048, Slots: 1},
	{VCPUs: 2, MemoryMB: 2048, DiskMB: 8192, Slots: 1}, {VCPUs: 2, MemoryMB: 4096, DiskMB: 8192, Slots: 1}, {VCPUs: 4, MemoryMB: 8192, DiskMB: 8192, Slots: 1},
	{VCPUs: 8, MemoryMB: 2048, DiskMB: 8192, Slots: 1}, {VCPUs: 1, MemoryMB: 16384, DiskMB: 8192, Slots: 1}, {VCPUs: 16, MemoryMB: 32768, DiskMB: 8192, Slots: 1},
}

// renamed is the same request for another sandbox.
func renamed(r *plan.Request, sandbox string) *plan.Request {
	again := *r
	again.SandboxID = sandbox
	return &again
}
