package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// DialGuest connects to guestd from inside the slot's namespace.
//
// A socket stays in the namespace in which it was made: so only making it and sending the SYN happens in there, which takes
// microseconds, and the answer is waited for at home without a thread.
func (s *Slot) DialGuest(ctx context.Context) (net.Conn, error) {
	var fd int
	err := s.pool.home.inside(s.ns, func() (err error) {
		fd, err = beginConnect()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("slot %s: %w", s.id, err)
	}
	f := os.NewFile(uintptr(fd), s.id)
	defer f.Close()
	if err := connected(ctx, f); err != nil {
		return nil, fmt.Errorf("slot %s: guestd: %w", s.id, err)
	}
	return net.FileConn(f)
}

func beginConnect() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: GuestPort, Addr: guestIP.As4()})
	if err != nil && err != unix.EINPROGRESS {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// connected waits until a socket is connected or has failed to.
func connected(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(past) })
	defer stop()
	var failed error
	err = raw.Write(func(fd uintptr) (done bool) {
		var errno int
		if errno, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); failed != nil {
			return true
		}
		if errno != 0 {
			failed = unix.Errno(errno)
			return true
		}
		_, e := unix.Getpeername(int(fd))
		return e == nil // not yet: wait until it is writable
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(err, failed)
}
