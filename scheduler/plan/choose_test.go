package plan

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// randomHost is a host of a mixed fleet.
func randomHost(rnd *rand.Rand, i int) *Host {
	cpus := []int64{8, 16, 64}[rnd.IntN(3)]
	h := &Host{
		ID: fmt.Sprintf("host-%05d", i), Zone: fmt.Sprint("z", i%3), State: Ready, Drivers: []string{"qemu/kvm"},
		Capacity: Resources{cpus, cpus * 4096, 1 << 20, 4 * cpus}, CPUFeatures: []string{"aes", "avx"},
		Labels: map[string]string{"pool": []string{"a", "b", "c"}[rnd.IntN(3)]},
	}
	h.Used = Resources{rnd.Int64N(cpus), rnd.Int64N(cpus * 4096), 0, 0}
	if rnd.IntN(4) == 0 {
		h.CPUFeatures = append(h.CPUFeatures, "avx512f")
	}
	if rnd.IntN(10) == 0 {
		h.State = State(1 + rnd.IntN(4))
	}
	for s := range 5 {
		if rnd.IntN(3) == 0 {
			h.Snapshots = append(h.Snapshots, fmt.Sprint("snap_", s))
		}
	}
	return h
}

func randomRequest(rnd *rand.Rand, n int) *Request {
	cpus := int64(1) << rnd.IntN(6)
	r := &Request{SandboxID: "sb", Resources: Resources{cpus, cpus * 2048, 1024, 1}}
	if rnd.IntN(2) == 0 {
		r.SnapshotID = fmt.Sprint("snap_", rnd.IntN(6))
	}
	if rnd.IntN(4) == 0 {
		r.Labels = map[string]string{"pool": []string{"a", "b", "nowhere"}[rnd.IntN(3)]}
	}
	if rnd.IntN(4) == 0 {
		r.CPUFeatures = []string{"avx512f"}
	}
	if rnd.IntN(8) == 0 {
		r.HostID = fmt.Sprintf("host-%05d", rnd.IntN(n+1))
	}
	if rnd.IntN(4) == 0 {
		r.Exclude = []string{fmt.Sprintf("host-%05d", rnd.IntN(n))}
	}
	if rnd.IntN(4) == 0 {
		r.SpreadKey = fmt.Sprint("key", rnd.IntN(3))
		if r.Apart = rnd.IntN(2) == 0; r.Apart && rnd.IntN(2) == 0 {
			r.ApartFrom = []string{fmt.Sprintf("host-%05d", rnd.IntN(n))}
		}
	}
	return r
}

func TestAHostIsChosenExactlyIfOneFits(t *testing.T) {
	for _, n := range []int{1, 5, ScanAll, 100} {
		rnd := rand.New(rand.NewPCG(uint64(n), 1))
		f := NewFleet()
		type held struct {
			host string
			r    *Request
		}
		var reserved []held
		for i := range n {
			f.Put(randomHost(rnd, i))
		}
		for step := range 3000 {
			switch rnd.IntN(10) {
			case 0:
				f.Put(randomHost(rnd, rnd.IntN(n)))
			case 1:
				id := fmt.Sprintf("host-%05d", rnd.IntN(n))
				f.Remove(id)
				reserved = slices.DeleteFunc(reserved, func(h held) bool { return h.host == id })
			case 2:
				if len(reserved) > 0 {
					h := reserved[0]
					row, _ := f.View().Row(h.host)
					f.Release(row, h.r.Resources, h.r.SpreadKey)
					reserved = reserved[1:]
				}
			}
			r := randomRequest(rnd, n)
			e := Explain(f.Freeze(), r)
			d, ok := Choose(f.View(), r, rnd)
			if ok != (e.Chosen != "") {
				t.Fatalf("%d hosts, step %d: chosen %v, but explained: %s", n, step, ok, e.Summary)
			}
			if !ok {
				continue
			}
			id := f.View().Host(d.Row).ID
			i := slices.IndexFunc(e.Verdicts, func(v Verdict) bool { return v.HostID == id })
			if v := e.Verdicts[i]; !v.Fits || v.Score != d.Score {
				t.Fatalf("%d hosts, step %d: chose %s with %v, whose verdict is %+v", n, step, id, d.Score, v)
			}
			if r.Apart && (slices.Contains(r.ApartFrom, id) || slices.ContainsFunc(reserved, func(h held) bool { return h.host == id && h.r.SpreadKey == r.SpreadKey })) {
				t.Fatalf("%d hosts, step %d: %s has one that it must be apart from", n, step, id)
			}
			if n <= ScanAll && d.Score != e.Verdicts[0].Score {
				t.Fatalf("%d hosts, step %d: chose %s with %v, the best has %v", n, step, id, d.Score, e.Verdicts[0].Score)
			}
			f.Reserve(d.Row, r.Resources, r.SpreadKey)
			reserved = append(reserved, held{id, r})
		}
		for _, h := range reserved {
			row, _ := f.View().Row(h.host)
			f.Release(row, h.r.Resources, h.r.SpreadKey)
		}
		for _, row := range f.View().Rows() {
			h := f.View().Host(row)
			if f.View().Held(row) != (Resources{}) || f.view.left[row] != h.Capacity.Minus(h.Used) {
				t.Errorf("%d hosts: %s holds %v and has %v left after all was given back", n, h.ID, f.View().Held(row), f.view.left[row])
			}
		}
		if len(f.view.spread) != 0 {
			t.Errorf("%d hosts: spread keys are left: %v", n, f.view.spread)
		}
	}
}

func TestTheSameViewAndNumbersGiveTheSameHost(t *testing.T) {
	f := NewFleet()
	for i := range 500 {
		f.Put(randomHost(rand.New(rand.NewPCG(uint64(i), 3)), i))
	}
	for i := range uint64(200) {
		r := randomRequest(rand.New(rand.NewPCG(i, 4)), 500)
		a, okA := Choose(f.View(), r, rand.New(rand.NewPCG(i, 5)))
		b, okB := Choose(f.View(), r, rand.New(rand.NewPCG(i, 5)))
		if a != b || okA != okB {
			t.Fatalf("request %d: %+v, then %+v", i, a, b)
		}
	}
}

func TestAFrozenViewStaysAsItIs(t *testing.T) {
	f := NewFleet()
	f.Put(&Host{ID: "a", State: Ready, Capacity: Resources{4, 4, 4, 4}})
	r := &Request{Resources: Resources{4, 4, 4, 4}, SpreadKey: "k"}
	frozen := f.Freeze()
	f.Reserve(0, r.Resources, "k")
	f.Put(&Host{ID: "b", State: Ready})
	f.Remove("a")
	if e := Explain(frozen, r); e.Chosen != "a" || len(e.Verdicts) != 1 {
		t.Errorf("got %+v", e)
	}
}

func TestChoosingAllocatesNothing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	f := NewFleet()
	for i := range 1000 {
		f.Put(randomHost(rnd, i))
	}
	r := &Request{
		Resources: Resources{1, 1024, 10, 1}, SnapshotID: "snap_1", Labels: map[string]string{"pool": "a"}, CPUFeatures: []string{"avx"},
		Exclude: []string{"host-00001"}, Driver: "qemu",
	}
	if n := testing.AllocsPerRun(100, func() { Choose(f.View(), r, rnd) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestACrowdedFleetIsScannedOnlyAsFarAsNeeded(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	f := NewFleet()
	for i := range 10000 {
		h := &Host{ID: fmt.Sprintf("host-%05d", i), State: Ready, Capacity: Resources{8, 8, 8, 8}}
		if i%100 != 0 {
			h.Used = h.Capacity
		}
		f.Put(h)
	}
	r := &Request{Resources: Resources{1, 1, 1, 1}}
	looked := 0
	for range 100 {
		d, ok := Choose(f.View(), r, rnd)
		if !ok {
			t.Fatal("a host is free and not found")
		}
		looked += d.Looked
	}
	if looked/100 > 2000 {
		t.Errorf("%d hosts are looked at on average, of which one in a hundred fits", looked/100)
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rnd := rand.New(rand.NewPCG(1, 2))
			f := NewFleet()
			for i := range n {
				f.Put(randomHost(rnd, i))
			}
			r := &Request{Resources: Resources{1, 1024, 10, 1}, SnapshotID: "snap_1", Labels: map[string]string{"pool": "a"}}
			for b.Loop() {
				Choose(f.View(), r, rnd)
			}
		})
	}
}

func TestAHostThatHasBecomeAnotherIsFoundAnewByRequestsOfAKindThatCameBefore(t *testing.T) {
	f, rnd := NewFleet(), rand.New(rand.NewPCG(1, 2))
	room := Resources{8, 8192, 8192, 8}
	r := &Request{SandboxID: "sb_1", Resources: Resources{1, 1, 1, 1}, Machine: "m2", CPUFeatures: []string{"avx"}}
	for _, x := range []struct {
		machines, features []string
		fits               bool
	}{{[]string{"m1"}, []string{"avx"}, false}, {[]string{"m1", "m2"}, []string{"avx"}, true}, {[]string{"m2"}, nil, false}, {nil, []string{"avx"}, true}} {
		f.Put(&Host{ID: "a", State: Ready, Capacity: room, Machines: x.machines, CPUFeatures: x.features})
		if _, ok := Choose(f.View(), r, rnd); ok != x.fits {
			t.Errorf("with machines %v and features %v it fits: %v", x.machines, x.features, ok)
		}
	}
}
