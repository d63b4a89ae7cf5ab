package transfer_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

func (m *mesh) isDurable(id string) bool {
	r, err := m.reg.GetManifest(m.t.Context(), &snapshotv1.GetManifestRequest{Snapshot: id})
	return err == nil && r.GetSnapshot().GetState() == snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE
}

func TestAnUploadThatIsCutOffGoesOnWhenTheHostIsBack(t *testing.T) {
	w := newWire(t)
	m := newMeshOn(t, w)
	a, b := m.host("host-a"), m.host("host-b")
	w.slow(registrySite, 256<<10) // Ten seconds and more for what is to be uploaded.
	s := a.save()
	a.register(s)
	eventually(t, "an upload is under way", func() bool {
		parts, _ := filepath.Glob(filepath.Join(m.dir, "objects", "*", "*.part"))
		return len(parts) > 0
	})
	w.cut("host-a")
	if m.isDurable(s.ID) {
		t.Fatal("it is durable before it is whole")
	}
	w.mend("host-a")
	w.slow(registrySite, 1<<30)
	m.durable(s.ID)
	a.stop()
	memory, disk := b.contents(s.ID)
	s.same(t, memory, disk)
}

func TestAPeerThatIsCutOffWhileItSendsIsReplacedByTheRegistry(t *testing.T) {
	w := newWire(t)
	m := newMeshOn(t, w)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	w.slow("host-b", 256<<10) // Ten seconds and more for what is to be read.
	type got struct{ memory, disk []byte }
	read := make(chan got, 1)
	go func() {
		memory, disk := b.contents(s.ID)
		read <- got{memory, disk}
	}()
	eventually(t, "the peer is asked", func() bool { return a.served.Load() > 0 })
	before := m.reads.Load()
	w.cut("host-a")
	w.slow("host-b", 1<<30)
	select {
	case g := <-read:
		s.same(t, g.memory, g.disk)
	case <-time.After(time.Minute):
		t.Fatal("the bytes that the registry has do not come")
	}
	if m.reads.Load() == before {
		t.Error("the registry was not asked")
	}
}

func TestARegistryThatIsCutOffIsNotMissedWhereAPeerHasEverything(t *testing.T) {
	w := newWire(t)
	m := newMeshOn(t, w)
	a, b := m.host("host-a"), m.host("host-b")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	b.open(s.ID).Release() // It knows where it is.
	w.cut(registrySite)
	memory, disk := b.contents(s.ID)
	s.same(t, memory, disk)
	// What is made meanwhile becomes durable afterwards.
	child := b.saveAs(machine.PauseSnapshot, "", s)
	w.mend(registrySite)
	b.register(child)
	m.durable(child.ID)
	memory, disk = m.host("host-c").contents(child.ID)
	child.same(t, memory, disk)
}

func TestThreeHostsWhoseRegistryAndPeersAreCutOffInTurnReadTheSameBytes(t *testing.T) {
	w := newWire(t)
	m := newMeshOn(t, w)
	a, b, c := m.host("host-a"), m.host("host-b"), m.host("host-c")
	s := a.save()
	a.register(s)
	m.durable(s.ID)
	memory, disk := b.contents(s.ID)
	s.same(t, memory, disk)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(150 * time.Millisecond)
		defer tick.Stop()
		sites := []string{"host-a", registrySite, "host-b"}
		for i := 0; ; i++ {
			w.cut(sites[i%3])
			select {
			case <-tick.C:
			case <-stop:
			}
			w.mend(sites[i%3])
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	memory, disk = c.contents(s.ID)
	close(stop)
	<-done
	s.same(t, memory, disk)
}

func TestTwoHostsThatUploadOneBuildDoNotBreakEachOthersUploadsOff(t *testing.T) {
	w := newWire(t)
	m := newMeshOn(t, w)
	a, b := m.host("host-a"), m.host("host-b")
	a.memory, b.memory = 16<<20, 16<<20
	m.hold.Store(true)
	parent := a.save()
	a.register(parent)
	b.contents(parent.ID) // So b has all of it too.
	child := b.saveAs(machine.PauseSnapshot, "", parent)
	b.register(child)
	w.slow(registrySite, 6<<20) // So that both are at it at the same time.
	m.hold.Store(false)
	m.durable(parent.ID)
	m.durable(child.ID)
	w.slow(registrySite, 1<<30)
	if n := m.broken.Load(); n > 0 {
		t.Errorf("%d uploads of objects were broken off", n)
	}
	memory, disk := m.host("host-c").contents(child.ID)
	child.same(t, memory, disk)
}
