// Pagerbench measures the pager on the real userfaultfd, beside a handler that does nothing but what has to be done; covey-bench runs it.
// Tables go to standard error, the metrics as one JSON object to standard output.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/pager/pagertest"
)

const (
	// touched is how much memory a run touches, in bytes, page by page; prefetched how much it prefetches.
	touched    = 32 << 20
	prefetched = 128 << 20
)

func main() {
	pagertest.Main()
	runs := flag.Int("runs", 10, "runs of each measurement")
	flag.Parse()
	b, err := newBench()
	if err == nil {
		err = b.measure(context.Background(), *runs)
		b.close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pagerbench:", err)
		os.Exit(1)
	}
	b.report()
}

// bench has what was measured: one value for each run.
type bench struct {
	dir    string
	memory memory
	cpus   []int // that this process may use
	// cpu that the touchers run on, and server that the pager and the floor do.
	cpu, server int

	apart, together              duel
	floorFile, anonymous, around []float64 // pages/s, apart
	prefetch, memcpy             []float64 // bytes/s
	floorLatency, latency        []int64   // of single touches, apart, in ns
}

// duel has the rates of the floor and of the pager, in faults/s: once with the VM and who serves it on a CPU each, where
// waking the other CPU is most of a fault, and once on the same, where the work is.
type duel struct{ floor, pager []float64 }

func newBench() (*bench, error) {
	dir, err := os.MkdirTemp("/dev/shm", "covey-pagerbench-")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, memory: make(memory, prefetched)}
	for i := range b.memory {
		b.memory[i] = byte(i>>12) | 1
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, err
	}
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			b.cpus = append(b.cpus, cpu)
		}
	}
	return b, nil
}

func (b *bench) close() { os.RemoveAll(b.dir) }

// measure takes everything in turn, so that what disturbs the machine disturbs all of it alike.
func (b *bench) measure(ctx context.Context, runs int) error {
	b.server = b.cpus[0]
	for i := range runs {
		if err := pagertest.Pin(b.server); err != nil {
			return err
		}
		b.cpu = b.cpus[len(b.cpus)-1]
		if err := b.measureApart(ctx); err != nil {
			return err
		}
		b.cpu = b.server
		if err := b.fight(ctx, &b.together); err != nil {
			return err
		}
		if err := pagertest.Pin(b.cpus...); err != nil {
			return err
		}
		prefetch, err := b.runPrefetch()
		if err != nil {
			return err
		}
		b.prefetch, b.memcpy = append(b.prefetch, prefetch), append(b.memcpy, b.runMemcpy())
		fmt.Fprintf(os.Stderr, "  run %2d of %d: floor %.0f faults/s, pager %.0f\n", i+1, runs, b.apart.floor[i], b.apart.pager[i])
	}
	return nil
}

func (b *bench) measureApart(ctx context.Context) error {
	if err := b.fight(ctx, &b.apart); err != nil {
		return err
	}
	floorFile, err := b.runFloor(ctx, true)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	anonymous, err := b.runPager(ctx, pager.PageSize, true)
	if err != nil {
		return err
	}
	around, err := b.runPager(ctx, 0, false)
	if err != nil {
		return err
	}
	b.floorFile, b.anonymous, b.around = append(b.floorFile, rate(floorFile)), append(b.anonymous, rate(anonymous)), append(b.around, rate(around))
	return nil
}

// fight measures the floor and the pager one after the other.
func (b *bench) fight(ctx context.Context, d *duel) error {
	floor, err := b.runFloor(ctx, false)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	single, err := b.runPager(ctx, pager.PageSize, false)
	if err != nil {
		return err
	}
	d.floor, d.pager = append(d.floor, rate(floor)), append(d.pager, rate(single))
	if d == &b.apart {
		b.floorLatency, b.latency = append(b.floorLatency, floor.Latencies...), append(b.latency, single.Latencies...)
	}
	return nil
}

// rate is how many pages a second were touched.
func rate(a pagertest.Answer) float64 {
	return touched / pager.PageSize / time.Duration(a.Nanos).Seconds()
}

// runPager has a toucher touch every page of an image that nobody has touched before.
func (b *bench) runPager(ctx context.Context, around int64, anonymous bool) (a pagertest.Answer, err error) {
	c, err := pager.NewCache(pager.Config{Dir: b.dir, Around: around})
	if err != nil {
		return a, err
	}
	defer c.Close()
	img, err := c.Open("bench", b.memory[:touched], nil)
	if err != nil {
		return a, err
	}
	defer img.Release()
	defer c.Drop("bench")
	socket := b.dir + "/socket"
	s, err := c.Serve(ctx, "bench", img, socket, os.Geteuid())
	if err != nil {
		return a, err
	}
	defer s.Close(ctx)
	file := img.File()
	if anonymous {
		file = nil
	}
	t, err := pagertest.Start(ctx, pagertest.Setup{Size: touched, Socket: socket, Anonymous: anonymous, CPU: b.cpu + 1}, file)
	if err != nil {
		return a, err
	}
	defer t.Close()
	return t.Ask(touchAll)
}

var touchAll = pagertest.Order{Do: "touch", Len: touched, Stride: pager.PageSize, Latencies: true}

// runPrefetch opens an image whose working set is all of it, and returns bytes/s.
func (b *bench) runPrefetch() (float64, error) {
	c, err := pager.NewCache(pager.Config{Dir: b.dir})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	var all []int64
	for off := int64(0); off < prefetched; off += 64 << 10 {
		all = append(all, off)
	}
	began := time.Now()
	img, err := c.Open("bench", b.memory, all)
	if err != nil {
		return 0, err
	}
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for c.Stats().CachedBytes < prefetched {
		<-tick.C
	}
	took := time.Since(began)
	c.Drop("bench")
	img.Release()
	return prefetched / took.Seconds(), nil
}

// runMemcpy copies as much between two resident buffers.
func (b *bench) runMemcpy() float64 {
	to := slices.Clone(b.memory)
	began := time.Now()
	copy(to, b.memory)
	return prefetched / time.Since(began).Seconds()
}

func (b *bench) report() {
	row := func(name string, values []float64, unit string) {
		fmt.Fprintf(os.Stderr, "  %-52s median %9.0f %-8s min %9.0f  max %9.0f  n=%d\n", name, median(values), unit, slices.Min(values), slices.Max(values), len(values))
	}
	row("floor: read, UFFDIO_COPY, single pages", b.apart.floor, "faults/s")
	row("floor: read, write to the file, UFFDIO_WAKE", b.floorFile, "faults/s")
	row("pager: private mapping, single pages", b.apart.pager, "faults/s")
	row("pager: anonymous memory, single pages", b.anonymous, "faults/s")
	row("pager: private mapping, filling around", b.around, "pages/s")
	row("floor, on the toucher's CPU", b.together.floor, "faults/s")
	row("pager, on the toucher's CPU", b.together.pager, "faults/s")
	row("prefetch", mega(b.prefetch), "MB/s")
	row("memcpy", mega(b.memcpy), "MB/s")
	fmt.Fprintf(os.Stderr, "  latency of a touch, floor: p50 %.1f us, p99 %.1f us; pager: p50 %.1f us, p99 %.1f us\n",
		quantile(b.floorLatency, 0.5), quantile(b.floorLatency, 0.99), quantile(b.latency, 0.5), quantile(b.latency, 0.99))
	line, _ := json.Marshal(map[string]float64{
		"pager_faults_per_s": median(b.apart.pager), "pager_floor_faults_per_s": median(b.apart.floor),
		"pager_over_floor":          median(ratio(b.apart.pager, b.apart.floor)),
		"pager_over_floor_same_cpu": median(ratio(b.together.pager, b.together.floor)),
		"pager_p50_us":              quantile(b.latency, 0.5), "pager_p99_us": quantile(b.latency, 0.99),
		"pager_floor_p99_us":         quantile(b.floorLatency, 0.99),
		"pager_around_over_single":   median(ratio(b.around, b.apart.pager)),
		"pager_prefetch_over_memcpy": median(ratio(b.prefetch, b.memcpy)),
	}) // numbers only: it cannot fail
	fmt.Println(string(line))
}

func mega(values []float64) (out []float64) {
	for _, v := range values {
		out = append(out, v/1e6)
	}
	return out
}

// ratio divides run by run.
func ratio(a, b []float64) (out []float64) {
	for i := range a {
		out = append(out, a[i]/b[i])
	}
	return out
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[len(s)/2]
}

// quantile of nanoseconds, in microseconds.
func quantile(nanos []int64, q float64) float64 {
	s := slices.Sorted(slices.Values(nanos))
	return float64(s[min(int(q*float64(len(s))), len(s)-1)]) / 1000
}

// memory is a source in memory.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(_ context.Context, p []byte, off int64) (string, error) {
	copy(p, m[off:])
	return "local", nil
}

func (m memory) Run(off int64) (int64, bool) { return int64(len(m)) - off, false }

func (m memory) Local(int64, int64) bool { return true }
