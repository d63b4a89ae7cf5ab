package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/pager/pagertest"
	"github.com/coveyhq/covey/hostagent/internal/pager/uffd"
)

// runFloor has a toucher touch every page, served by one thread that waits in read, copies the page in, and wakes: with file false
// into anonymous memory in one call, else by way of a file that is mapped privately.
func (b *bench) runFloor(ctx context.Context, file bool) (a pagertest.Answer, err error) {
	socket := b.dir + "/floor"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return a, err
	}
	defer l.Close()
	var image *os.File
	if file {
		if image, err = os.CreateTemp(b.dir, "floor-"); err != nil {
			return a, err
		}
		defer image.Close()
		defer os.Remove(image.Name())
		if err := image.Truncate(touched); err != nil {
			return a, err
		}
	}
	t, err := pagertest.Start(ctx, pagertest.Setup{Size: touched, Socket: socket, Anonymous: !file, CPU: b.cpu + 1}, image)
	if err != nil {
		return a, err
	}
	defer t.Close()
	base, fd, err := takeUffd(l)
	if err != nil {
		return a, err
	}
	defer unix.Close(fd)
	served := make(chan error, 1)
	go func() { served <- b.straightLine(fd, base, image) }()
	a, err = t.Ask(touchAll)
	return a, errors.Join(err, <-served)
}

func takeUffd(l *net.UnixListener) (base uint64, fd int, err error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return 0, -1, err
	}
	defer conn.Close()
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return 0, -1, err
	}
	var regions []pager.Region
	if err := json.Unmarshal(buf[:n], &regions); err != nil {
		return 0, -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, -1, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, -1, err
	}
	return regions[0].Base, fds[0], unix.SetNonblock(fds[0], false)
}

// straightLine serves as many faults as there are pages.
func (b *bench) straightLine(fd int, base uint64, image *os.File) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := make([]byte, uffd.MessageSize)
	for range touched / pager.PageSize {
		if n, err := unix.Read(fd, buf); err != nil || n != len(buf) {
			return fmt.Errorf("read: %d bytes, %v", n, err)
		}
		addr := uffd.Parse(buf, 0).Start
		off := addr - base
		page := b.memory[off : off+pager.PageSize]
		if image == nil {
			if _, err := uffd.Copy(fd, addr, page); err != nil {
				return err
			}
			continue
		}
		if _, err := unix.Pwrite(int(image.Fd()), page, int64(off)); err != nil {
			return err
		}
		if err := uffd.Wake(fd, addr, pager.PageSize); err != nil {
			return err
		}
	}
	return nil
}
