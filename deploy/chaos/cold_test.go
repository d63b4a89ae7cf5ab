package chaos

import (
	"context"
	"testing"
	"time"

	"github.com/coveyhq/covey/deploy/mesh"
	"github.com/coveyhq/covey/deploy/meshtest"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// golden makes a template of a sandbox with a load, on the source, and waits until it is durable. It tells its size as it is stored, without
// what it shares with others.
func golden(t *testing.T, ctx context.Context, name string, mb int) (meshtest.Load, uint64) {
	t.Helper()
	l := s.Burden(t, ctx, s.Create(t, ctx, onHost(source)).GetId(), mb)
	id := s.Template(t, ctx, l.ID, name).GetId()
	var snap *snapshotv1.Snapshot
	meshtest.Eventually(t, time.Minute, name+" is durable", func() bool {
		res, err := s.Snapshots.GetSnapshot(ctx, &snapshotv1.GetSnapshotRequest{SnapshotId: id})
		snap = res.GetSnapshot()
		return err == nil && snap.GetState() == snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE
	})
	return l, uint64(snap.GetUniqueBytes())
}

// spawnOn makes a sandbox of a template on a host, has it answer a first command, and tells how long that took.
func spawnOn(t *testing.T, ctx context.Context, l meshtest.Load, template, host string) (meshtest.Load, time.Duration) {
	t.Helper()
	began := time.Now()
	q := onHost(host)
	q.Template, q.MemoryMb = template, 0
	got := l.Of(s.Create(t, ctx, q).GetId())
	s.Sh(t, ctx, got.ID, "true")
	return got, time.Since(began)
}

// sentBy and receivedBy are what a site has sent and received so far, bytes on its link.
func sentBy(t *testing.T, site string) uint64 {
	t.Helper()
	_, sent, err := s.Mesh.Traffic(site)
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

func receivedBy(t *testing.T, site string) uint64 {
	t.Helper()
	received, _, err := s.Mesh.Traffic(site)
	if err != nil {
		t.Fatal(err)
	}
	return received
}

func TestOverASlowLinkASandboxStartsLongBeforeItsMemoryAndDiskHaveArrived(t *testing.T) {
	ctx := s.Start(t, 2*time.Minute)
	const speed = 4 << 20
	l, size := golden(t, ctx, "chaos-slow", 16)
	if err := s.Mesh.Slow(target, speed); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Mesh.Slow(target, 0) }) // It is fast again unless the test failed before.
	before := receivedBy(t, target)
	got, took := spawnOn(t, ctx, l, "chaos-slow", target)
	moved := receivedBy(t, target) - before
	whole := time.Duration(float64(size) / speed * float64(time.Second))
	t.Logf("of %d bytes %d (%d%%) were on the link before the first command was answered, after %s; all of them take %s", size, moved, moved*100/size, took, whole)
	if moved > size/2 {
		t.Errorf("%d of %d bytes were moved before the first command was answered", moved, size)
	}
	if err := s.Mesh.Slow(target, 0); err != nil {
		t.Fatal(err)
	}
	got.Check(t, ctx)
}

// herd has both hosts that are not the source start a template at once and read all of it. It tells what the registry has sent meanwhile.
func herd(t *testing.T, ctx context.Context, l meshtest.Load, template string) uint64 {
	t.Helper()
	before := sentBy(t, mesh.RegistrySite)
	t.Run("all at once", func(t *testing.T) {
		for _, h := range []string{target, third} {
			t.Run(h, func(t *testing.T) {
				t.Parallel()
				got, _ := spawnOn(t, ctx, l, template, h)
				got.Check(t, ctx)
			})
		}
	})
	return sentBy(t, mesh.RegistrySite) - before
}

func TestHostsThatStartOneTemplateAtOnceReadItFromTheirPeersAndHardlyFromTheRegistry(t *testing.T) {
	ctx := s.Start(t, 2*time.Minute)
	l, size := golden(t, ctx, "chaos-herd", 8)
	sent := herd(t, ctx, l, "chaos-herd")
	t.Logf("2 hosts started and read a template of %d bytes: the registry has sent %d", size, sent)
	if sent > size/4 {
		t.Errorf("the registry has sent %d bytes", sent)
	}
}

func TestHostsThatStartOneTemplateAtOnceWithoutItsMakerReadItFromTheRegistryOnce(t *testing.T) {
	ctx := s.Start(t, 3*time.Minute)
	l, _ := golden(t, ctx, "chaos-orphan", 32)
	res, err := s.Snapshots.GetSnapshot(ctx, &snapshotv1.GetSnapshotRequest{SnapshotId: "chaos-orphan"})
	if err != nil {
		t.Fatal(err)
	}
	// What it shares with the source's own first-boot snapshot is on no other host.
	size := uint64(res.GetSnapshot().GetUniqueBytes() + res.GetSnapshot().GetSharedBytes())
	for _, h := range []string{target, third} {
		if err := s.Mesh.Part(source, h); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Mesh.Join(source, h); err != nil {
				t.Error(err)
			}
		})
	}
	sent := herd(t, ctx, l, "chaos-orphan")
	t.Logf("2 hosts, which could not reach its maker, started and read a template of %d bytes: the registry has sent %d", size, sent)
	if sent > size*13/10 {
		t.Errorf("the registry has sent %d bytes", sent)
	}
}
