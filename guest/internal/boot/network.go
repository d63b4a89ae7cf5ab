package boot

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Addresses of every guest; the same everywhere, so that a snapshot needs no new ones.
var (
	guestIP   = netip.MustParseAddr("172.16.0.2")
	gatewayIP = netip.MustParseAddr("172.16.0.1")
	netmask   = netip.MustParseAddr("255.255.255.252")
	anyIP     = netip.MustParseAddr("0.0.0.0")
)

// configureNetwork brings up lo and eth0 and sets the default route, by the old ioctls: three calls need no netlink library.
func configureNetwork() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := linkUp(fd, "lo"); err != nil {
		return err
	}
	if _, err := os.Stat("/sys/class/net/eth0"); err != nil {
		return nil // a VM without a network device
	}
	// Without IPv6 on it, nothing is announced and probed in the background; programs still have ::1.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := setAddress(fd, unix.SIOCSIFADDR, "eth0", guestIP); err != nil {
		return err
	}
	if err := setAddress(fd, unix.SIOCSIFNETMASK, "eth0", netmask); err != nil {
		return err
	}
	if err := linkUp(fd, "eth0"); err != nil {
		return err
	}
	return addDefaultRoute(fd, gatewayIP)
}

func linkUp(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	return nil
}

func setAddress(fd int, request uint, name string, ip netip.Addr) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := ifr.SetInet4Addr(ip.AsSlice()); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, request, ifr); err != nil {
		return fmt.Errorf("address of %s: %w", name, err)
	}
	return nil
}

// rtentry is struct rtentry of linux/route.h on 64-bit machines.
type rtentry struct {
	_                     uint64
	dst, gateway, genmask unix.RawSockaddrInet4
	flags                 uint16
	_                     int16
	_                     uint32
	_                     uint64
	_                     uint8
	_                     uint8
	_                     [3]int16
	metric                int16
	_                     [6]byte
	dev                   uintptr
	mtu, window           uint64
	irtt                  uint16
	_                     [6]byte
}

func addDefaultRoute(fd int, via netip.Addr) error {
	addr := func(ip netip.Addr) unix.RawSockaddrInet4 {
		return unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: ip.As4()}
	}
	r := rtentry{dst: addr(anyIP), genmask: addr(anyIP), gateway: addr(via), flags: unix.RTF_UP | unix.RTF_GATEWAY}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&r))); errno != 0 && errno != unix.EEXIST {
		return fmt.Errorf("default route: %w", errno)
	}
	return nil
}

// ext4ResizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64): grows a mounted filesystem to so many blocks.
const ext4ResizeFS = 0x40086610

// grow makes the root filesystem as large as its disk.
func grow(device, mountPoint string) error {
	dev, err := os.Open(device)
	if err != nil {
		return err
	}
	defer dev.Close()
	var bytes uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&bytes))); errno != 0 {
		return errno
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(mountPoint, &fs); err != nil {
		return err
	}
	blocks := bytes / uint64(fs.Bsize)
	// Statfs leaves out what the filesystem itself takes: only a difference of 5 % says that the disk is really larger.
	if blocks < fs.Blocks+fs.Blocks/20 {
		return nil
	}
	root, err := os.Open(mountPoint)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return errno
	}
	return nil
}
