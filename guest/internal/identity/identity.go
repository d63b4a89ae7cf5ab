// Package identity makes a restored guest unlike every other of its snapshot: clock, randomness, names.
//
// All of it runs between the restore and the first answer, when under emulation each piece of code that runs for the first
// time costs microseconds. So nothing here starts a process, looks for a path, or touches the disk's filesystem: the files
// of the identity are in memory, opened beforehand, and init has mounted them over those in /etc, as container engines do.
// The cost: such a file cannot be renamed over, and what is written to it is no part of a snapshot of the disk alone.
package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MinEntropy is how many bytes of fresh randomness a guest needs at least.
const MinEntropy = 32

// FieldError: a value that is not legal.
type FieldError struct{ Name, Why string }

func (e *FieldError) Error() string { return e.Name + ": " + e.Why }

// Field names the field, in the words of the contract.
func (e *FieldError) Field() string { return e.Name }

// Reason says what is wrong with it.
func (e *FieldError) Reason() string { return e.Why }

// Identity is what a guest is to be.
type Identity struct {
	// Now is the right time.
	Now time.Time
	// Entropy is fresh randomness, at least MinEntropy bytes.
	Entropy []byte
	// Hostname, MachineID (32 hexadecimal digits) and Nameservers; empty keeps what the guest has.
	Hostname, MachineID string
	Nameservers         []string
}

// Validate says what is wrong with it.
func (i *Identity) Validate() error {
	if i.Now.Unix() <= 0 {
		return &FieldError{"now_unix_ns", "must be the time, after 1970"}
	}
	if len(i.Entropy) < MinEntropy {
		return &FieldError{"entropy", fmt.Sprintf("must be at least %d bytes, got %d", MinEntropy, len(i.Entropy))}
	}
	if i.Hostname != "" && !isHostname(i.Hostname) {
		return &FieldError{"hostname", fmt.Sprintf("must be 1 to 64 letters, digits, dots and dashes, got %q", i.Hostname)}
	}
	if i.MachineID != "" && !isMachineID(i.MachineID) {
		return &FieldError{"machine_id", fmt.Sprintf("must be 32 hexadecimal digits, got %q", i.MachineID)}
	}
	for _, n := range i.Nameservers {
		if n == "" || strings.ContainsAny(n, " \t\r\n") {
			return &FieldError{"nameservers", fmt.Sprintf("must be addresses, got %q", n)}
		}
	}
	return nil
}

func isHostname(s string) bool {
	for i := range len(s) {
		c := s[i]
		inside := i > 0 && i < len(s)-1 && (c == '-' || c == '.')
		if !inside && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return len(s) <= 64
}

func isMachineID(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'f') {
			return false
		}
	}
	return len(s) == 32
}

// Dir is where the guest's files of its identity are, and Names what they are called there and in /etc.
const Dir = "/run/covey/etc"

// Names of the files, as in /etc.
var Names = []string{"hostname", "hosts", "machine-id", "resolv.conf"}

// Guest is where an identity is put.
type Guest struct {
	kernel                               Kernel
	hostname, hosts, machineID, resolver *os.File
}

// Open opens the files of Names in dir, or makes them. A nil kernel is the one that we run on.
func Open(dir string, kernel Kernel) (*Guest, error) {
	g := &Guest{kernel: kernel}
	if kernel == nil {
		random, err := os.Open("/dev/urandom")
		if err != nil {
			return nil, err
		}
		g.kernel = system{random}
	}
	for i, f := range []**os.File{&g.hostname, &g.hosts, &g.machineID, &g.resolver} {
		var err error
		if *f, err = os.OpenFile(filepath.Join(dir, Names[i]), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	return g, nil
}

// Close lets go of the files.
func (g *Guest) Close() error {
	var errs []error
	for _, f := range []*os.File{g.hostname, g.hosts, g.machineID, g.resolver} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if k, ok := g.kernel.(system); ok {
		errs = append(errs, k.random.Close())
	}
	return errors.Join(errs...)
}

// Kernel is what of an identity the kernel keeps.
type Kernel interface {
	SetTime(time.Time) (step time.Duration, err error)
	AddEntropy([]byte) error
	SetHostname(string) error
	Hostname() (string, error)
}

// Attestation says what was renewed.
type Attestation struct {
	// ClockStep is how far the clock was moved; positive is forward.
	ClockStep time.Duration
	// MachineID and Hostname are those that the guest has now.
	MachineID, Hostname string
}

// SetClockAndEntropy does what concerns the kernel's state alone.
func (g *Guest) SetClockAndEntropy(i *Identity) (step time.Duration, err error) {
	if step, err = g.kernel.SetTime(i.Now); err != nil {
		return 0, fmt.Errorf("set the clock: %w", err)
	}
	if err := g.kernel.AddEntropy(i.Entropy); err != nil {
		return 0, fmt.Errorf("add entropy: %w", err)
	}
	return step, nil
}

// SetNames gives the guest its names.
func (g *Guest) SetNames(i *Identity) (a Attestation, err error) {
	if i.Hostname != "" {
		if err := g.kernel.SetHostname(i.Hostname); err != nil {
			return a, fmt.Errorf("set the hostname: %w", err)
		}
		if err := Overwrite(g.hostname, []byte(i.Hostname+"\n")); err != nil {
			return a, err
		}
		if err := g.nameInHosts(i.Hostname); err != nil {
			return a, err
		}
	}
	if i.MachineID != "" {
		if err := Overwrite(g.machineID, []byte(strings.ToLower(i.MachineID)+"\n")); err != nil {
			return a, err
		}
	}
	if len(i.Nameservers) > 0 {
		var b []byte
		for _, n := range i.Nameservers {
			b = append(append(append(b, "nameserver "...), n...), '\n')
		}
		if err := Overwrite(g.resolver, b); err != nil {
			return a, err
		}
	}
	id, err := read(g.machineID)
	if err != nil {
		return a, err
	}
	a.MachineID = string(bytes.TrimSpace(id))
	a.Hostname, err = g.kernel.Hostname()
	return a, err
}

// ownAddress is where Debian's /etc/hosts has the host's own name, so that sudo and others find it without DNS.
var ownAddress = []byte("127.0.1.1")

func (g *Guest) nameInHosts(name string) error {
	old, err := read(g.hosts)
	if err != nil {
		return err
	}
	b := make([]byte, 0, len(old)+len(ownAddress)+len(name)+3)
	for line := range bytes.Lines(old) {
		if !bytes.HasPrefix(line, ownAddress) {
			b = append(b, line...)
		}
	}
	if n := len(b); n > 0 && b[n-1] != '\n' {
		b = append(b, '\n')
	}
	b = append(append(append(append(b, ownAddress...), '\t'), name...), '\n')
	return Overwrite(g.hosts, b)
}

// maxRead bounds what is read of a file that anybody in the guest may have made long.
const maxRead = 64 << 10

func read(f *os.File) ([]byte, error) {
	b := make([]byte, 512)
	for n := 0; ; b = append(b, make([]byte, len(b))...) {
		m, err := f.ReadAt(b[n:], int64(n))
		if n += m; errors.Is(err, io.EOF) || n >= maxRead {
			return b[:n], nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// Overwrite replaces an open file's content.
func Overwrite(f *os.File, content []byte) error {
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(content)))
}

// system is the kernel that we run on.
type system struct{ random *os.File }

func (system) SetTime(t time.Time) (time.Duration, error) {
	// Round(0) drops the monotonic reading: the wall clocks are compared.
	step := t.Sub(time.Now().Round(0))
	ts := unix.NsecToTimespec(t.UnixNano())
	if _, _, errno := unix.Syscall(unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0, errno
	}
	return step, nil
}

// entropyInfo is struct rand_pool_info of linux/random.h with its buffer.
type entropyInfo struct {
	bits, size int32
	buf        [512]byte
}

// AddEntropy credits the kernel's generator and makes it reseed at once: until then clones would go on with the same keys.
func (s system) AddEntropy(b []byte) error {
	fd := s.random.Fd()
	for len(b) > 0 {
		var info entropyInfo
		n := copy(info.buf[:], b)
		info.size, info.bits = int32(n), int32(8*n)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); errno != 0 {
			return fmt.Errorf("RNDADDENTROPY: %w", errno)
		}
		b = b[n:]
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.RNDRESEEDCRNG, 0); errno != 0 {
		return fmt.Errorf("RNDRESEEDCRNG: %w", errno)
	}
	return nil
}

func (system) SetHostname(name string) error { return unix.Sethostname([]byte(name)) }

func (system) Hostname() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(u.Nodename[:]), nil
}
