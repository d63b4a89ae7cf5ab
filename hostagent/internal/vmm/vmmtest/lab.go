package vmmtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/disk"
	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

const (
	memoryBytes = 128 << 20
	diskBytes   = 16 << 20
	// patience is how long a guest may take to boot or to answer on a machine that is busy.
	patience = 60 * time.Second
	ready    = "testguest: ready"
	firstUID = 240000
)

// lab has what VMs are made of.
type lab struct {
	setup          Setup
	driver         vmm.Driver
	cache          *pager.Cache
	disks          *disk.Store
	kernel, initrd string
	dir            string
	last           atomic.Int32
}

func newLab(t *testing.T, setup Setup) *lab {
	t.Helper()
	from := Artifacts(t)
	if os.Getuid() != 0 {
		t.Fatal("VMs run as users of their own: run this test as root")
	}
	l := &lab{setup: setup, kernel: filepath.Join(from, setup.Kernel), dir: t.TempDir()}
	l.initrd = filepath.Join(l.dir, "initramfs")
	buildInitramfs(t, filepath.Join(from, "initramfs.cpio"), l.initrd)
	l.driver = setup.Driver(t)
	pages, err := os.MkdirTemp("/dev/shm", "covey-vmmtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(pages) })
	if l.cache, err = pager.NewCache(pager.Config{Dir: pages}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.cache.Close(); err != nil {
			t.Error(err)
		}
	})
	if l.disks, err = disk.NewStore(filepath.Join(l.dir, "disks"), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return l
}

// subject is a VM with its surroundings.
type subject struct {
	vmm.VM
	t     *testing.T
	lab   *lab
	cfg   vmm.Config
	net   *netns
	disk  *disk.Disk
	pager *pager.Session
	// from is what it was restored from; nil after a boot.
	from *snapshot
}

// place makes the surroundings of a VM: its memory and disk are those of from, or zeros.
func (l *lab) place(t *testing.T, from *snapshot) *subject {
	t.Helper()
	n := int(l.last.Add(1))
	id := fmt.Sprintf("sb_%d", n)
	dir := filepath.Join(l.dir, id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &subject{t: t, lab: l, net: newNetNS(t), from: from}
	s.cfg = vmm.Config{
		ID: id, RunDir: dir, VCPUs: 1, MemoryBytes: memoryBytes, Kernel: l.kernel, Initrd: l.initrd, Cmdline: "quiet " + l.setup.Cmdline,
		PagerSocket: filepath.Join(dir, "pager.sock"), DiskSocket: filepath.Join(dir, "disk.sock"),
		NetNS: s.net.path(), TapName: tapName, MAC: guestMAC,
		ConsolePath: filepath.Join(dir, "console"), UID: firstUID + n, GID: firstUID + n,
	}
	if from != nil {
		s.cfg.VCPUs = from.vcpus
	}
	s.serve()
	return s
}

// serve serves memory and disk.
func (s *subject) serve() {
	s.t.Helper()
	var image *pager.Image
	var base disk.Base
	var err error
	if s.from == nil {
		image, err = s.lab.cache.Zeros(memoryBytes)
	} else {
		image, err = s.lab.cache.Open(s.from.name, s.from.memory, nil)
		base = s.from.disk
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(image.Release)
	s.cfg.Memory = image.File()
	if s.pager, err = s.lab.cache.Serve(s.t.Context(), s.cfg.ID, image, s.cfg.PagerSocket, s.cfg.UID); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.pager.Close(context.Background()); err != nil {
			s.t.Error(err)
		}
	})
	if s.disk, err = s.lab.disks.Create(s.t.Context(), s.cfg.ID, base, diskBytes, s.cfg.DiskSocket, s.cfg.UID); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.disk.Discard(context.Background()); err != nil {
			s.t.Error(err)
		}
	})
}

// boot boots a guest and waits until it serves.
func (l *lab) boot(t *testing.T, change func(*vmm.Config)) *subject {
	t.Helper()
	s := l.place(t, nil)
	if change != nil {
		change(&s.cfg)
	}
	vm, err := l.driver.Boot(t.Context(), s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.own(vm)
	s.awaitConsole(ready)
	return s
}

// restore restores a guest, which stands still.
func (l *lab) restore(t *testing.T, from *snapshot) *subject {
	t.Helper()
	s := l.place(t, from)
	vm, err := l.driver.Restore(t.Context(), s.cfg, from.state)
	if err != nil {
		t.Fatalf("%v\n%s", err, s.console())
	}
	s.own(vm)
	return s
}

// clone restores a guest and sets it going.
func (l *lab) clone(t *testing.T, from *snapshot) *subject {
	t.Helper()
	s := l.restore(t, from)
	s.cont()
	return s
}

// own sees to the VM's end, before that of its surroundings.
func (s *subject) own(vm vmm.VM) {
	s.VM = vm
	s.t.Cleanup(func() {
		if err := vm.Kill(context.Background()); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *subject) stop() {
	s.t.Helper()
	if err := s.Stop(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *subject) cont() {
	s.t.Helper()
	if err := s.Cont(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// save makes a snapshot of the VM, which stands still then.
func (s *subject) save() *snapshot {
	s.t.Helper()
	s.stop()
	n := s.lab.last.Add(1)
	snap := &snapshot{name: fmt.Sprintf("snap_%d", n), state: filepath.Join(s.lab.dir, fmt.Sprintf("state_%d", n)), vcpus: s.cfg.VCPUs}
	if err := s.SaveState(s.t.Context(), snap.state); err != nil {
		s.t.Fatal(err)
	}
	if s.from == nil {
		snap.memory = newContent(s.t, memoryBytes)
	} else {
		snap.memory = copyOf(s.t, s.from.memory)
	}
	var err error
	if snap.dirty, err = s.SaveDirty(s.t.Context(), snap.memory); err != nil {
		s.t.Fatal(err)
	}
	snap.disk = newContent(s.t, diskBytes)
	frozen, err := s.disk.Freeze(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	defer frozen.Release()
	buf := make([]byte, diskBytes)
	if _, err := frozen.ReadAt(buf, 0); err != nil && err != io.EOF {
		s.t.Fatal(err)
	}
	if err := snap.disk.WriteDirty(buf, 0); err != nil {
		s.t.Fatal(err)
	}
	return snap
}

func (s *subject) console() string {
	b, _ := os.ReadFile(s.cfg.ConsolePath)
	return string(b)
}

func (s *subject) awaitConsole(text string) {
	s.t.Helper()
	eventually(s.t, "the console says "+strconv.Quote(text), patience, func() bool {
		if strings.Contains(s.console(), text) {
			return true
		}
		select {
		case <-s.Done():
			s.t.Fatalf("the VM has ended: %s\n%s", s.Exit().Reason, s.console())
		default:
		}
		return false
	})
}

// ask has the guest obey a request and returns its answer.
func (s *subject) ask(format string, args ...any) string {
	s.t.Helper()
	answer, err := s.try(patience, fmt.Sprintf(format, args...))
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", fmt.Sprintf(format, args...), err, s.console())
	}
	return answer
}

func (s *subject) try(within time.Duration, request string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	conn, err := s.net.dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return talk(conn, within, request)
}

// tell makes a request whose answer may not come, because the guest ends.
func (s *subject) tell(request string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := s.net.dial(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	talk(conn, 300*time.Millisecond, request)
}

func talk(conn net.Conn, within time.Duration, request string) (string, error) {
	conn.SetDeadline(time.Now().Add(within))
	if _, err := fmt.Fprintln(conn, request); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSpace(line)
	answer, ok := strings.CutPrefix(line, "ok")
	if !ok {
		return "", fmt.Errorf("the guest says %q", line)
	}
	return strings.TrimSpace(answer), nil
}

func (s *subject) ticks() int {
	s.t.Helper()
	n, err := strconv.Atoi(s.ask("ping"))
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}
