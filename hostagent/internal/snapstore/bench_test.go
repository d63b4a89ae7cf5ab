package snapstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
)

// BenchmarkCommit saves a guest of 512 MiB with 32 MiB of dirty memory and 4 MiB of dirty disk, and reads the time that Commit takes.
func BenchmarkCommit(b *testing.B) {
	w := newWorld(b, nil)
	r := rand.New(rand.NewPCG(1, 1))
	g := w.boot(512<<20, imageSize)
	scatter(g, r, 80<<20)
	g.save("snap_base")
	g.end()
	base := w.resume("snap_base", g)
	base.dirty = map[int64]bool{}
	scatter(base, r, 32<<20)
	for n := range int64(1024) {
		check(b, base.disk.WriteAt(context.Background(), random(r, page), n*2*page))
	}
	i := 0
	for b.Loop() {
		i++
		stats := base.save(fmt.Sprintf("snap_%d", i))
		b.ReportMetric(float64(stats.Stored), "stored-bytes")
		b.StopTimer()
		w.cache.Drop(fmt.Sprintf("snap_%d", i))
		check(b, w.store.Remove(context.Background(), fmt.Sprintf("snap_%d", i)))
		b.StartTimer()
	}
	base.end()
}

// scatter dirties so many bytes in runs of 1 to 32 pages.
func scatter(g *guest, r *rand.Rand, bytes int) {
	for bytes > 0 {
		n := min(1+r.IntN(32), bytes/page)
		first := r.IntN(len(g.memory)/page - n)
		copy(g.memory[first*page:], random(r, n*page))
		for i := range n {
			g.dirty[int64(first+i)] = true
		}
		bytes -= n * page
	}
}

// BenchmarkOpen opens and releases a snapshot that nobody has open.
func BenchmarkOpen(b *testing.B) {
	w := newWorld(b, nil)
	g := w.boot(512<<20, imageSize)
	scatter(g, rand.New(rand.NewPCG(1, 1)), 80<<20)
	g.save("snap_base")
	g.end()
	for b.Loop() {
		s, err := w.store.OpenSnapshot(context.Background(), "snap_base")
		check(b, err)
		s.Release()
	}
}

// BenchmarkReadBlock reads 64 KiB of memory, as a fault does.
func BenchmarkReadBlock(b *testing.B) {
	w := newWorld(b, nil)
	g := w.boot(512<<20, imageSize)
	scatter(g, rand.New(rand.NewPCG(1, 1)), 80<<20)
	g.save("snap_base")
	g.end()
	s, err := w.store.OpenSnapshot(context.Background(), "snap_base")
	check(b, err)
	defer s.Release()
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	r := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		_, err := s.Memory().ReadAt(context.Background(), p, int64(r.IntN(512<<20/len(p)))*int64(len(p)))
		check(b, err)
	}
}
