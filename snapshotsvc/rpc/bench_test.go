package rpc_test

import (
	"testing"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

const benchSize = 64 << 20

// BenchmarkUpload is one stream into the directory store, over loopback, synced at its end.
func BenchmarkUpload(b *testing.B) {
	f := newFixture(b)
	b.SetBytes(benchSize)
	for b.Loop() {
		b.StopTimer()
		i := newPause(newBuild(benchSize))
		if _, err := f.reg.RegisterSnapshot(as(b, ""), i.reg); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := f.put(as(b, ""), i.id(), i.objects[3]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRead is one stream out of it.
func BenchmarkRead(b *testing.B) {
	f := newFixture(b)
	i := newPause(newBuild(benchSize))
	f.save(i)
	b.SetBytes(benchSize)
	for b.Loop() {
		if _, err := f.get(as(b, ""), i.objects[3].ref.Key, 0, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadRange is what a page fault on another host costs: 64 KiB.
func BenchmarkReadRange(b *testing.B) {
	f := newFixture(b)
	i := newPause(newBuild(benchSize))
	f.save(i)
	for n := 0; b.Loop(); n++ {
		if _, err := f.get(as(b, ""), i.objects[3].ref.Key, int64(n%1000)<<16, 1<<16); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCommit is a snapshot of which everything is stored already, like a template of a paused sandbox.
func BenchmarkCommit(b *testing.B) {
	f := newFixture(b)
	i := newPause(newBuild(1000), newBuild(1000), newBuild(1000))
	f.save(i)
	for b.Loop() {
		i.reg.Manifest.SnapshotId = newID()
		if _, err := f.reg.RegisterSnapshot(as(b, ""), i.reg); err != nil {
			b.Fatal(err)
		}
		if _, err := f.reg.CommitSnapshot(as(b, ""), &snapshotv1.CommitSnapshotRequest{SnapshotId: i.id()}); err != nil {
			b.Fatal(err)
		}
	}
}
