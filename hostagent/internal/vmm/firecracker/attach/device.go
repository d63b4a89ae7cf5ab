package attach

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker"
)

// The netlink family "nbd" (include/uapi/linux/nbd-netlink.h).
const (
	family        = "nbd"
	familyVersion = 1

	nlConnect     = 1
	nlDisconnect  = 2
	nlReconfigure = 3

	attrIndex       = 1
	attrSize        = 2
	attrBlockSize   = 3
	attrTimeout     = 4
	attrServerFlags = 5
	attrSockets     = 7
	attrDeadTimeout = 8
	attrBackend     = 10

	sockItem = 1
	sockFD   = 1
)

const (
	// deadTime is how long reads and writes wait for another agent, in seconds; then the guest sees errors.
	deadTime = 300
	// requestTime is how long one request may take, in seconds: the server may have to fetch what is asked for.
	requestTime = 300
	indexName   = "disk.index"
)

// Devices implements firecracker.Disks with the kernel's nbd.
type Devices struct{ family uint16 }

var _ firecracker.Disks = (*Devices)(nil)

// NewDevices looks whether the kernel has nbd.
func NewDevices() (*Devices, error) {
	f, err := netlink.GenlFamilyGet(family)
	if err != nil {
		return nil, fmt.Errorf("the kernel has no nbd (modprobe nbd): %w", err)
	}
	return &Devices{f.ID}, nil
}

// New makes devices where the kernel has nbd, and copies where it has not; why is the sentence that says so.
func New() (disks firecracker.Disks, why string) {
	d, err := NewDevices()
	if err != nil {
		return Copies{}, "disks are copied into files, which is slow: " + err.Error()
	}
	return d, "disks are attached as /dev/nbdN"
}

// Attach implements firecracker.Disks.
func (s *Devices) Attach(ctx context.Context, a firecracker.Attachment) (_ firecracker.Disk, err error) {
	d := &device{devices: s, record: filepath.Join(a.Dir, indexName)}
	err = withSocket(ctx, a.Socket, func(c *client, fd int) error {
		answer, err := s.request(nlConnect, append([]*nl.RtAttr{
			number(attrSize, uint64(c.size)), number(attrBlockSize, block), number(attrTimeout, requestTime),
			number(attrServerFlags, uint64(c.flags)), number(attrDeadTimeout, deadTime), nl.NewRtAttr(attrBackend, nl.ZeroTerminated(a.ID)),
		}, sockets(fd))...)
		if err == nil {
			d.index, err = indexOf(answer)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach the disk of %s: %w", a.ID, err)
	}
	// Noted before anybody uses it: the next agent detaches what it cannot take over.
	if err := os.WriteFile(d.record, strconv.AppendInt(nil, int64(d.index), 10), 0o600); err != nil {
		return nil, errors.Join(err, d.Detach(ctx))
	}
	return d, nil
}

// Reattach implements firecracker.Disks.
func (s *Devices) Reattach(ctx context.Context, a firecracker.Attachment) (firecracker.Disk, error) {
	d := &device{devices: s, record: filepath.Join(a.Dir, indexName)}
	text, err := os.ReadFile(d.record)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.record, err)
	}
	d.index = uint32(n)
	err = withSocket(ctx, a.Socket, func(_ *client, fd int) error {
		_, err := s.request(nlReconfigure, index(d.index), nl.NewRtAttr(attrBackend, nl.ZeroTerminated(a.ID)), sockets(fd))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect %s again: %w", d.Path(), err)
	}
	return d, nil
}

// withSocket calls f with a connection, of which the kernel may keep a descriptor.
func withSocket(ctx context.Context, socket string, f func(c *client, fd int) error) error {
	c, err := connect(ctx, socket)
	if err != nil {
		return err
	}
	defer c.close()
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		// The kernel's threads wait for the socket, Go's descriptors do not: the flag is of both.
		if inner = unix.SetNonblock(int(fd), false); inner == nil {
			inner = f(c, int(fd))
		}
	})
	return errors.Join(err, inner)
}

func (s *Devices) request(command uint8, attrs ...*nl.RtAttr) ([][]byte, error) {
	req := nl.NewNetlinkRequest(int(s.family), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: command, Version: familyVersion})
	for _, a := range attrs {
		req.AddData(a)
	}
	answer, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return nil, fmt.Errorf("netlink nbd command %d: %w", command, err)
	}
	return answer, nil
}

func number(kind int, n uint64) *nl.RtAttr {
	return nl.NewRtAttr(kind, binary.NativeEndian.AppendUint64(nil, n))
}

func index(n uint32) *nl.RtAttr { return nl.NewRtAttr(attrIndex, nl.Uint32Attr(n)) }

// sockets is the list of connections, of which there is one.
func sockets(fd int) *nl.RtAttr {
	list := nl.NewRtAttr(attrSockets|unix.NLA_F_NESTED, nil)
	item := list.AddRtAttr(sockItem|unix.NLA_F_NESTED, nil)
	item.AddRtAttr(sockFD, nl.Uint32Attr(uint32(fd)))
	return list
}

func indexOf(answer [][]byte) (uint32, error) {
	for _, m := range answer {
		if len(m) < nl.SizeofGenlmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type == attrIndex && len(a.Value) >= 4 {
				return binary.NativeEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, errors.New("the kernel does not say which device it took")
}

// device is a disk as /dev/nbdN. It implements firecracker.Disk.
type device struct {
	devices *Devices
	index   uint32
	record  string
	once    sync.Once
}

// Path implements firecracker.Disk.
func (d *device) Path() string { return fmt.Sprintf("/dev/nbd%d", d.index) }

// Flush implements firecracker.Disk: the VMM has written into the kernel's page cache.
func (d *device) Flush(context.Context) error {
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Detach implements firecracker.Disk.
func (d *device) Detach(context.Context) (err error) {
	d.once.Do(func() {
		_, err = d.devices.request(nlDisconnect, index(d.index))
		if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENODEV) {
			err = nil // it is connected no more
		}
		err = errors.Join(err, removeIfThere(d.record))
	})
	return err
}

// Close implements firecracker.Disk.
func (d *device) Close() error { return nil }
