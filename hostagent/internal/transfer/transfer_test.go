package transfer_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

func (s saved) same(t *testing.T, memory, disk []byte) {
	t.Helper()
	if !bytes.Equal(memory, s.memory) || !bytes.Equal(disk, s.disk) {
		t.Fatalf("snapshot %s has other bytes", s.ID)
	}
}

func (h *host) register(s saved) {
	h.m.t.Helper()
	if err := h.Register(h.m.t.Context(), s.Manifest); err != nil {
		h.m.t.Fatal(err)
	}
}

func TestASnapshotOfOneHostIsReadOnAnother(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	got := b.open(s.ID)
	if man := got.Manifest(); man.Tenant != "acme" || man.ImageID != s.ImageID || man.Kind != s.Kind || !slices.Equal(man.DiskBuilds, s.DiskBuilds) {
		t.Fatalf("manifest is %+v, made as %+v", man, s.Manifest)
	}
	got.Release()
	memory, disk := b.contents(s.ID)
	s.same(t, memory, disk)
	if a.served.Load() == 0 {
		t.Fatal("the peer was not asked")
	}
	// What is made on the other host from it becomes durable too, and is read on a third.
	child := b.saveAs(machine.PauseSnapshot, "", s)
	b.register(child)
	m.durable(child.ID)
	memory, disk = m.host("host-c").contents(child.ID)
	child.same(t, memory, disk)
}

func TestTheRegistryServesWhereNoPeerDoes(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	a.stop()
	memory, disk := b.contents(s.ID)
	s.same(t, memory, disk)
}

func TestAPeerThatSendsWrongBytesIsNotBelieved(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	a.lie.Store(true)
	memory, disk := b.contents(s.ID)
	s.same(t, memory, disk)
	if a.served.Load() == 0 {
		t.Fatal("the peer was not asked")
	}
}

// Before it is durable a snapshot can be read from the host that made it.
func TestASnapshotThatIsOnItsWayIsReadFromItsHost(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	memory, disk := b.contents(s.ID)
	s.same(t, memory, disk)
}

func TestUploadsGoOnAfterTheAgentOrTheRegistryDied(t *testing.T) {
	m := newMesh(t)
	a := m.host("host-a")
	m.killRegistry()
	one, two := a.save(), a.save()
	if err := a.Register(t.Context(), one.Manifest); err == nil {
		t.Fatal("registered at a dead registry")
	}
	// The second one was made just before the agent died: nobody has heard of it.
	a.stop()
	a.start()
	if a.Pending() != 2 {
		eventually(t, "both are pending", func() bool { return a.Pending() == 2 })
	}
	m.startRegistry()
	m.durable(one.ID)
	m.durable(two.ID)
	eventually(t, "nothing is pending", func() bool { return a.Pending() == 0 })
	a.stop()
	a.start()
	if a.Pending() != 0 {
		t.Fatalf("%d are uploaded again", a.Pending())
	}
}

func TestWhatWasDeletedIsRemovedFromAllHosts(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	b.contents(s.ID)
	if _, err := m.reg.DropSnapshot(t.Context(), &snapshotv1.DropSnapshotRequest{SnapshotId: s.ID}); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*host{a, b} {
		eventually(t, h.id+" has it no more", func() bool { return !slices.Contains(h.store.Local(), s.ID) })
	}
	_, err := m.host("host-c").store.OpenSnapshot(t.Context(), s.ID)
	if !errors.Is(err, machine.ErrSnapshotNotFound) {
		t.Fatalf("a deleted snapshot: %v", err)
	}
}

// marked tells whether the host keeps a lease.
func (h *host) marked(id string) bool {
	mark, _ := os.ReadFile(filepath.Join(h.dir, "transfer", "marks", id)) // None is none.
	return string(mark) == "fetched"
}

func TestARemovalThatIsReportedLateDoesNotEndTheLeaseOfWhatWasFetchedAgain(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	kept := func(what string) {
		t.Helper()
		b.Removed(s.ID)
		for end := time.After(500 * time.Millisecond); ; { // Some reports.
			if !b.marked(s.ID) {
				t.Fatalf("%s has no lease any more", what)
			}
			select {
			case <-time.After(20 * time.Millisecond):
				continue
			case <-end:
			}
			break
		}
	}
	_, done, err := b.Fetcher().Find(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	kept("what is being fetched")
	b.open(s.ID).Release()
	kept("what is being fetched by another")
	done()
	kept("what is here")
	pinned := b.open(s.ID)
	if err := b.store.Remove(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	kept("what is in use")
	pinned.Release()
	eventually(t, "the lease is released", func() bool { return !b.marked(s.ID) })
	// A fetch that came to nothing leaves none.
	if _, done, err = b.Fetcher().Find(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	done()
	eventually(t, "the lease is released", func() bool { return !b.marked(s.ID) })
}

// The old snapshot is dropped while the new one, which names its builds, is not registered yet: the host's lease keeps them.
func TestWhatAnUnregisteredSnapshotNamesIsKept(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	parent := a.save()
	a.register(parent)
	m.durable(parent.ID)
	child := b.saveAs(machine.PauseSnapshot, "", parent)
	if _, err := m.reg.DropSnapshot(t.Context(), &snapshotv1.DropSnapshotRequest{SnapshotId: parent.ID}); err != nil {
		t.Fatal(err)
	}
	a.stop()
	if err := b.store.Remove(t.Context(), parent.ID); err != nil {
		t.Fatal(err)
	}
	b.stop()
	b.start() // Finds the child by itself.
	m.durable(child.ID)
	memory, disk := m.host("host-c").contents(child.ID)
	child.same(t, memory, disk)
}

func TestACopyUnderAnotherIDIsReadLikeItsOriginal(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	r, err := m.reg.GetManifest(t.Context(), &snapshotv1.GetManifestRequest{Snapshot: s.ID})
	if err != nil {
		t.Fatal(err)
	}
	copied := proto.CloneOf(r.GetManifest())
	copied.SnapshotId = newID()
	if _, err := m.reg.RegisterSnapshot(t.Context(), &snapshotv1.RegisterSnapshotRequest{
		TenantId: "acme", Kind: snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE, Name: "golden", Manifest: copied, HostId: "host-a",
	}); err != nil {
		t.Fatal(err)
	}
	memory, disk := b.contents(copied.GetSnapshotId())
	s.same(t, memory, disk)
}

func TestANameThatIsTakenIsSaidAtOnceAndNothingIsUploaded(t *testing.T) {
	m := newMesh(t)
	a := m.host("host-a")
	first := a.saveAs(machine.TemplateSnapshot, "golden", a.of())
	a.register(first)
	m.durable(first.ID)
	second := a.saveAs(machine.TemplateSnapshot, "golden", a.of())
	if err := a.Register(t.Context(), second.Manifest); status.Code(err) != codes.AlreadyExists {
		t.Fatalf("registered: %v", err)
	}
	if a.Pending() != 0 {
		t.Fatal("it is uploaded")
	}
}

// A paused sandbox is nothing but its snapshot, so refusing it must not be the last word.
func TestAPausedSandboxsSnapshotThatIsRefusedIsUploadedOnceItIsTaken(t *testing.T) {
	m := newMesh(t)
	a := m.host("host-a")
	m.refuse.Store(true)
	paused, template := a.save(), a.saveAs(machine.TemplateSnapshot, "golden", a.of())
	for _, s := range []saved{paused, template} {
		if err := a.Register(t.Context(), s.Manifest); status.Code(err) != codes.InvalidArgument {
			t.Fatalf("registered: %v", err)
		}
	}
	if a.Pending() != 1 {
		t.Fatalf("%d are pending, want the paused sandbox's alone", a.Pending())
	}
	a.open(paused.ID).Release()
	m.refuse.Store(false)
	m.durable(paused.ID)
	eventually(t, "nothing is pending", func() bool { return a.Pending() == 0 })
	if _, err := m.reg.GetManifest(t.Context(), &snapshotv1.GetManifestRequest{Snapshot: template.ID}); status.Code(err) != codes.NotFound {
		t.Errorf("a template whose maker was told that it failed: %v", err)
	}
}

func TestManyHostsThatStartOneSnapshotAtOnceLeaveTheRegistryAlone(t *testing.T) {
	m := newMesh(t)
	a := m.host("host-a")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	var hosts []*host
	for _, id := range []string{"b", "c", "d", "e", "f", "g"} {
		hosts = append(hosts, m.host("host-"+id))
	}
	var wg sync.WaitGroup
	for _, h := range hosts {
		wg.Go(func() {
			memory, disk := h.contents(s.ID)
			s.same(t, memory, disk)
		})
	}
	wg.Wait()
	served, reads := a.served.Load(), m.reads.Load()
	for _, h := range hosts {
		served += h.served.Load()
	}
	t.Logf("%d ranges asked of peers, %d of the registry", served, reads)
	if reads > served/10 {
		t.Fatalf("the registry was asked %d times, peers %d", reads, served)
	}
}

// The maker is out of reach, so that the registry is all there is at first; the hosts begin in lockstep, and knew nothing of each other.
func TestManyColdHostsWithoutTheMakerMakeTheRegistrySendHardlyMoreThanOneDoes(t *testing.T) {
	m := newMesh(t)
	a := m.host("host-a")
	a.memory = 64 << 20
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	a.stop()
	first := m.host("host-first")
	memory, disk := first.contents(s.ID)
	s.same(t, memory, disk)
	first.stop()
	one := m.sent.Swap(0)
	// What matters is the order: on an overrun machine it may take long until a host has had its turn.
	m.turn = time.Minute
	var hosts []*host
	for _, id := range []string{"b", "c", "d", "e", "f", "g"} {
		hosts = append(hosts, m.host("host-"+id))
	}
	var wg sync.WaitGroup
	for _, h := range hosts {
		wg.Go(func() {
			memory, disk := h.contents(s.ID)
			s.same(t, memory, disk)
		})
	}
	wg.Wait()
	many := m.sent.Load()
	t.Logf("the registry has sent %d bytes to one host, %d to %d hosts at once", one, many, len(hosts))
	if many > one*13/10 {
		t.Errorf("the registry has sent %d bytes to %d hosts at once, %d to one", many, len(hosts), one)
	}
	for _, h := range hosts {
		if h.served.Load() == 0 {
			t.Errorf("%s has served nobody", h.id)
		}
	}
}

// spoil damages what a host has of a snapshot's memory.
func (h *host) spoil(s saved) {
	h.m.t.Helper()
	path := filepath.Join(h.dir, "store", "builds", s.MemoryBuilds[len(s.MemoryBuilds)-1])
	data, err := os.ReadFile(path)
	if err != nil {
		h.m.t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		h.m.t.Fatal(err)
	}
}

func TestWhatIsDamagedBeforeItIsUploadedIsHealedFromAnotherHostAndBecomesDurable(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	m.hold.Store(true)
	s := a.save()
	a.register(s)
	memory, disk := b.contents(s.ID)
	s.same(t, memory, disk)
	a.spoil(s)
	m.hold.Store(false)
	m.durable(s.ID)
	a.stop()
	memory, disk = m.host("host-c").contents(s.ID)
	s.same(t, memory, disk)
}

func TestWhatIsDamagedHereAndWholeNowhereElseIsNotUploadedAgainAndAgain(t *testing.T) {
	m := newMesh(t)
	a := m.host("host-a")
	good, bad := a.save(), a.save()
	a.spoil(bad)
	a.register(bad)
	eventually(t, "it is uploaded once", func() bool { return m.uploads.Load() > 0 })
	// Others go on meanwhile.
	a.register(good)
	m.durable(good.ID)
	before := m.uploads.Load()
	for end := time.After(2 * time.Second); ; { // Tries would follow in 0.2, 0.4 and 0.8 s.
		select {
		case <-time.After(50 * time.Millisecond):
			continue
		case <-end:
		}
		break
	}
	if n := m.uploads.Load(); n > before+2 {
		t.Errorf("%d objects were uploaded after it was known", n-before)
	}
	if a.Pending() != 1 || m.isDurable(bad.ID) {
		t.Errorf("%d are pending; durable: %v", a.Pending(), m.isDurable(bad.ID))
	}
}

func TestOfManyWhoNeedToKnowWhoHasASnapshotOneAsks(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	b.open(s.ID).Release()
	b.stop()
	b.start() // It knows nothing any more.
	before := m.manifests.Load()
	got := b.open(s.ID)
	defer got.Release()
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			if _, err := got.Memory().ReadAt(t.Context(), make([]byte, 4096), 1<<20+int64(i)*65536%(2<<20)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := m.manifests.Load() - before; n != 1 {
		t.Errorf("the registry was asked %d times", n)
	}
}

func TestALeaseWhoseAnswerIsLostIsGivenBack(t *testing.T) {
	m := newMesh(t)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	r, err := m.reg.GetManifest(t.Context(), &snapshotv1.GetManifestRequest{Snapshot: s.ID})
	if err != nil {
		t.Fatal(err)
	}
	leased := func() bool {
		stream, err := m.reg.ReadObject(t.Context(), &snapshotv1.ReadObjectRequest{Key: r.GetManifest().GetState().GetKey(), SnapshotId: s.ID})
		if err != nil {
			t.Fatal(err)
		}
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(got.GetHostIds(), "host-b")
	}
	m.unheard.Store(true)
	if _, _, err := b.Fetcher().Find(t.Context(), s.ID); err == nil {
		t.Fatal("found")
	}
	eventually(t, "the lease is given back", func() bool { return !leased() && !b.marked(s.ID) })
}
