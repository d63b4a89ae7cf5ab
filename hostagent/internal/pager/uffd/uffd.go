// Package uffd is the kernel's userfaultfd interface as the pager uses it: one function for each ioctl, and reading of
// messages. See userfaultfd(2) and ioctl_userfaultfd(2). Waking and reading, which cannot wait, are done without telling Go's
// scheduler.
package uffd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ioctls and constants of linux/userfaultfd.h, which golang.org/x/sys lacks.
const (
	ioctlNew      = 0xaa00
	ioctlAPI      = 0xc018aa3f
	ioctlRegister = 0xc020aa00
	ioctlWake     = 0x8010aa02
	ioctlCopy     = 0xc028aa03
	ioctlZeropage = 0xc020aa04

	apiVersion  = 0xaa
	modeMissing = 1
)

// FeatureRemove is UFFD_FEATURE_EVENT_REMOVE: discards of memory are told, and wait until they have been read.
const FeatureRemove = 1 << 3

// Event is what a message tells.
type Event byte

// Events that the pager understands.
const (
	Pagefault Event = 0x12
	Fork      Event = 0x13
	Remap     Event = 0x14
	Remove    Event = 0x15
	Unmap     Event = 0x16
)

// MessageSize is the size of one message, in bytes.
const MessageSize = 32

// Message is one event. Start is a fault's address, or where a range begins that ends at End.
type Message struct {
	Event      Event
	Start, End uint64
}

// New makes a userfaultfd that does not block, from an open /dev/userfaultfd or, if that is nil, by the system call, and
// asks for features.
func New(dev *os.File, features uint64) (int, error) {
	var fd uintptr
	var errno unix.Errno
	if dev != nil {
		fd, _, errno = unix.Syscall(unix.SYS_IOCTL, dev.Fd(), ioctlNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
	} else {
		fd, _, errno = unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	}
	if errno != 0 {
		return -1, fmt.Errorf("userfaultfd: %w", errno)
	}
	api := [3]uint64{apiVersion, features}
	if err := ioctl(int(fd), ioctlAPI, unsafe.Pointer(&api)); err != nil {
		unix.Close(int(fd))
		return -1, fmt.Errorf("UFFDIO_API with features %#x: %w", features, err)
	}
	return int(fd), nil
}

// Register asks for the faults on missing pages of a range.
func Register(fd int, start, size uint64) error {
	arg := [4]uint64{start, size, modeMissing}
	return ioctl(fd, ioctlRegister, unsafe.Pointer(&arg))
}

// Wake lets the threads that wait for a page of the range try again.
func Wake(fd int, start, size uint64) error {
	arg := [2]uint64{start, size}
	if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), ioctlWake, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return errno
	}
	return nil
}

// Copy puts src at dst and wakes who waits there. It returns how many bytes went in: fewer, with an error, where it came on a page
// that is there already (EEXIST, possibly after some progress as EAGAIN) or on a change of the mapping under way (EAGAIN without
// progress, to be tried again once the events have been read).
func Copy(fd int, dst uint64, src []byte) (int64, error) {
	arg := [5]uint64{dst, uint64(uintptr(unsafe.Pointer(unsafe.SliceData(src)))), uint64(len(src))}
	err := ioctl(fd, ioctlCopy, unsafe.Pointer(&arg))
	return max(int64(arg[4]), 0), err
}

// Zero maps the page of zeros into the range, in the same way as Copy.
func Zero(fd int, start, size uint64) (int64, error) {
	arg := [4]uint64{start, size}
	err := ioctl(fd, ioctlZeropage, unsafe.Pointer(&arg))
	return max(int64(arg[3]), 0), err
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Read reads what messages there are into buf, whose length is a multiple of MessageSize, and returns how many; none is no
// error. It never waits: who handed the descriptor over could have made it a blocking one, so the kernel is told for each
// read. Where it cannot be told (before Linux 6.10), the descriptor's own mode is relied on.
func Read(fd int, buf []byte) (int, error) {
	iov := unix.Iovec{Base: &buf[0], Len: uint64(len(buf))}
	const current = ^uintptr(0) // no offset: read, not pread
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, current, current, unix.RWF_NOWAIT)
	if errno == unix.EOPNOTSUPP {
		n, _, errno = unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	}
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return 0, nil
	case errno != 0:
		return 0, errno
	}
	return int(n) / MessageSize, nil
}

// Parse reads message i of what Read has read.
func Parse(buf []byte, i int) Message {
	b := buf[i*MessageSize : (i+1)*MessageSize]
	m := Message{Event: Event(b[0])}
	switch m.Event {
	case Pagefault:
		m.Start = binary.NativeEndian.Uint64(b[16:])
	case Remove, Unmap:
		m.Start, m.End = binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:])
	}
	return m
}

// Is tells whether the descriptor of process pid ("self" for one's own) is a userfaultfd.
func Is(pid string, fd string) bool {
	link, err := os.Readlink("/proc/" + pid + "/fd/" + fd)
	return err == nil && link == "anon_inode:[userfaultfd]"
}

// Exists tells whether err says that a page was there already, Changing that the mapping is being changed, and Gone that
// the process or the mapping is no more.
func Exists(err error) bool { return errors.Is(err, unix.EEXIST) }

// Changing: see Exists.
func Changing(err error) bool { return errors.Is(err, unix.EAGAIN) }

// Gone: see Exists.
func Gone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) }
