// Testguest is the guest of the conformance suite: the first process of a VM, which obeys a line protocol over TCP.
//
// It is packed as /init into an archive that is appended to an initramfs with the virtio modules in /modules. Chosen: a
// guest of its own. Rejected: guestd, because a driver's test must break when the driver does and not when guestd does,
// and because it needs things that no sandbox should offer, like a panic on request.
//
// Each request is a line, each answer is a line: "ok ..." or "error ...".
//
//	ping                  ok TICKS, a counter that a goroutine raises every 10 ms
//	cpus                  ok N
//	flags                 ok FLAG...
//	fill SEED MIB         fill a buffer of MIB MiB with bytes that follow from SEED
//	touch SEED PAGES      overwrite PAGES pages, spread over the buffer
//	sum                   ok SHA256 of the buffer
//	write OFF BYTES SEED  write to /dev/vda, past every cache, and flush
//	read OFF BYTES        ok SHA256 of that range of /dev/vda, past every cache
//	say TEXT              print TEXT to the console
//	poweroff, reboot, panic
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Address is where the guest listens, and Ready what it prints once it does.
const (
	Address = "172.16.0.2:7777"
	Ready   = "testguest: ready"
)

const page = 4096

func main() {
	if err := boot(); err != nil {
		powerOff(err)
	}
	g := &guest{}
	go g.tick()
	powerOff(g.serve())
}

// powerOff ends the guest, and says why.
func powerOff(why error) {
	fmt.Println("testguest:", why)
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// boot makes devices and the network.
func boot() error {
	for _, m := range []struct{ what, where string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m.what, m.where, m.what, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	// The kernel opened no console where /dev was empty.
	if fd, err := unix.Open("/dev/console", unix.O_RDWR, 0); err == nil {
		unix.Dup2(fd, 1)
		unix.Dup2(fd, 2)
	}
	if err := loadModules(); err != nil {
		return err
	}
	return configure("eth0", [4]byte{172, 16, 0, 2}, [4]byte{255, 255, 255, 252})
}

func loadModules() error {
	list, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	sort.Strings(list)
	for _, path := range list {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
		f.Close()
	}
	return nil
}

// configure gives a network device its address and takes it up.
func configure(name string, addr, mask [4]byte) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	for req, a := range map[uint][4]byte{unix.SIOCSIFADDR: addr} {
		if err := setAddress(s, name, req, a); err != nil {
			return err
		}
	}
	if err := setAddress(s, name, unix.SIOCSIFNETMASK, mask); err != nil {
		return err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

// down takes a network device down.
func down(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

func setAddress(s int, name string, req uint, a [4]byte) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := ifr.SetInet4Addr(a[:]); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, req, ifr); err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	return nil
}

// guest is what requests act on.
type guest struct {
	ticks atomic.Int64
	mu    sync.Mutex // guards buf
	buf   []byte
}

func (g *guest) tick() {
	for range time.Tick(10 * time.Millisecond) {
		g.ticks.Add(1)
	}
}

// serve serves until it fails.
func (g *guest) serve() error {
	l, err := net.Listen("tcp", Address)
	if err != nil {
		return err
	}
	fmt.Println(Ready)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go g.talk(c)
	}
}

func (g *guest) talk(c net.Conn) {
	defer c.Close()
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		out, err := g.obey(lines.Text())
		if err != nil {
			out = "error " + strings.ReplaceAll(err.Error(), "\n", " ")
		} else {
			out = strings.TrimSpace("ok " + out)
		}
		if _, err := fmt.Fprintln(c, out); err != nil {
			return
		}
	}
}

func (g *guest) obey(line string) (string, error) {
	verb, rest, _ := strings.Cut(line, " ")
	var a, b, seed uint64
	switch verb {
	case "ping":
		return fmt.Sprint(g.ticks.Load()), nil
	case "cpus":
		return fmt.Sprint(runtime.NumCPU()), nil
	case "flags":
		b, err := os.ReadFile("/proc/cpuinfo")
		_, flags, _ := strings.Cut(string(b), "flags\t\t:")
		flags, _, _ = strings.Cut(flags, "\n")
		return flags, err
	case "say":
		fmt.Println(rest)
		return "", nil
	case "fill", "touch":
		if _, err := fmt.Sscan(rest, &seed, &a); err != nil {
			return "", err
		}
		return "", g.change(verb, seed, int(a))
	case "sum":
		g.mu.Lock()
		defer g.mu.Unlock()
		return fmt.Sprintf("%x", sha256.Sum256(g.buf)), nil
	case "write":
		if _, err := fmt.Sscan(rest, &a, &b, &seed); err != nil {
			return "", err
		}
		return "", writeDisk(int64(a), int(b), seed)
	case "read":
		if _, err := fmt.Sscan(rest, &a, &b); err != nil {
			return "", err
		}
		return readDisk(int64(a), int(b))
	}
	return "", end(verb)
}

// end ends the VM. The network goes down first: Linux 6.1.192 breaks virtio devices when it shuts down, and its network
// driver then looks for ever for the end of a transmission that was under way.
func end(verb string) error {
	switch verb {
	case "poweroff", "reboot":
		if err := down("eth0"); err != nil {
			return err
		}
	}
	switch verb {
	case "poweroff":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "panic":
		return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	}
	return fmt.Errorf("unknown request %q", verb)
}

func (g *guest) change(verb string, seed uint64, n int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if verb == "fill" {
		b, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		if g.buf != nil {
			unix.Munmap(g.buf)
		}
		g.buf = b
		scatter(b, seed)
		return nil
	}
	pages := len(g.buf) / page
	if n > pages {
		return fmt.Errorf("touch %d of %d pages", n, pages)
	}
	for i := range n {
		at := i * pages / max(n, 1) * page
		scatter(g.buf[at:at+page], seed+uint64(i))
	}
	return nil
}

// scatter fills b with bytes that follow from seed.
func scatter(b []byte, seed uint64) {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	rand.NewChaCha8(key).Read(b)
}

func writeDisk(off int64, n int, seed uint64) error {
	b, err := aligned(n)
	if err != nil {
		return err
	}
	defer unix.Munmap(b)
	scatter(b, seed)
	f, err := os.OpenFile("/dev/vda", os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		return err
	}
	return f.Sync()
}

func readDisk(off int64, n int) (string, error) {
	b, err := aligned(n)
	if err != nil {
		return "", err
	}
	defer unix.Munmap(b)
	f, err := os.OpenFile("/dev/vda", os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := f.ReadAt(b, off); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(b)), nil
}

// aligned is memory that a device can write to directly.
func aligned(n int) ([]byte, error) {
	if n <= 0 || n%page != 0 {
		return nil, fmt.Errorf("%d bytes: want a positive multiple of %d", n, page)
	}
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}
