// Package identity makes a restored guest unlike every other of its snapshot: clock, randomness, names.
//
// Nothing here starts a process or waits for the disk: it runs between the restore and the first answer.
package identity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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

var hostname = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)

// Validate says what is wrong with it.
func (i *Identity) Validate() error {
	if i.Now.Unix() <= 0 {
		return &FieldError{"now_unix_ns", "must be the time, after 1970"}
	}
	if len(i.Entropy) < MinEntropy {
		return &FieldError{"entropy", fmt.Sprintf("must be at least %d bytes, got %d", MinEntropy, len(i.Entropy))}
	}
	if i.Hostname != "" && !hostname.MatchString(i.Hostname) {
		return &FieldError{"hostname", fmt.Sprintf("must be 1 to 64 letters, digits, dots and dashes, got %q", i.Hostname)}
	}
	if id, err := hex.DecodeString(i.MachineID); i.MachineID != "" && (err != nil || len(id) != 16) {
		return &FieldError{"machine_id", fmt.Sprintf("must be 32 hexadecimal digits, got %q", i.MachineID)}
	}
	for _, n := range i.Nameservers {
		if n == "" || strings.ContainsAny(n, " \t\r\n") {
			return &FieldError{"nameservers", fmt.Sprintf("must be addresses, got %q", n)}
		}
	}
	return nil
}

// Guest is where an identity is put. The zero value is the guest itself; tests have another Root and Kernel.
type Guest struct {
	// Root is put before the paths of files.
	Root string
	// Kernel is what the system calls do; nil means they are made.
	Kernel Kernel
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

// SetClockAndEntropy does what needs no file: it may run while the filesystem is frozen.
func (g Guest) SetClockAndEntropy(i *Identity) (step time.Duration, err error) {
	if step, err = g.kernel().SetTime(i.Now); err != nil {
		return 0, fmt.Errorf("set the clock: %w", err)
	}
	if err := g.kernel().AddEntropy(i.Entropy); err != nil {
		return 0, fmt.Errorf("add entropy: %w", err)
	}
	return step, nil
}

// SetNames gives the guest its names.
func (g Guest) SetNames(i *Identity) (a Attestation, err error) {
	if i.Hostname != "" {
		if err := g.kernel().SetHostname(i.Hostname); err != nil {
			return a, fmt.Errorf("set the hostname: %w", err)
		}
		err := errors.Join(g.write("/etc/hostname", []byte(i.Hostname+"\n")), g.nameInHosts(i.Hostname))
		if err != nil {
			return a, err
		}
	}
	if i.MachineID != "" {
		if err := g.write("/etc/machine-id", []byte(strings.ToLower(i.MachineID)+"\n")); err != nil {
			return a, err
		}
	}
	if len(i.Nameservers) > 0 {
		var b bytes.Buffer
		for _, n := range i.Nameservers {
			fmt.Fprintf(&b, "nameserver %s\n", n)
		}
		if err := g.write("/etc/resolv.conf", b.Bytes()); err != nil {
			return a, err
		}
	}
	id, err := os.ReadFile(filepath.Join(g.Root, "/etc/machine-id"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return a, err
	}
	a.MachineID = strings.TrimSpace(string(id))
	a.Hostname, err = g.kernel().Hostname()
	return a, err
}

// ownAddress is where Debian's /etc/hosts has the host's own name, so that sudo and others find it without DNS.
const ownAddress = "127.0.1.1"

func (g Guest) nameInHosts(name string) error {
	old, err := os.ReadFile(filepath.Join(g.Root, "/etc/hosts"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var b bytes.Buffer
	for line := range bytes.Lines(old) {
		if f := bytes.Fields(line); len(f) == 0 || string(f[0]) != ownAddress {
			b.Write(line)
		}
	}
	if n := b.Len(); n > 0 && b.Bytes()[n-1] != '\n' {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%s\t%s\n", ownAddress, name)
	return g.write("/etc/hosts", b.Bytes())
}

// write writes a file unless it has this content already: a block that is not written is not in the next snapshot. The file
// is replaced, so that a reader never sees half, and a link that the guest's user put there is not followed.
func (g Guest) write(path string, content []byte) error {
	full := filepath.Join(g.Root, path)
	if old, err := os.ReadFile(full); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := os.WriteFile(full+".covey", content, 0o644); err != nil {
		return err
	}
	return os.Rename(full+".covey", full)
}

func (g Guest) kernel() Kernel {
	if g.Kernel == nil {
		return system{}
	}
	return g.Kernel
}

// system is the kernel that we run on.
type system struct{}

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
func (system) AddEntropy(b []byte) error {
	fd, err := unix.Open("/dev/urandom", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for len(b) > 0 {
		var info entropyInfo
		n := copy(info.buf[:], b)
		info.size, info.bits = int32(n), int32(8*n)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); errno != 0 {
			return fmt.Errorf("RNDADDENTROPY: %w", errno)
		}
		b = b[n:]
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.RNDRESEEDCRNG, 0); errno != 0 {
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
