package pager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/pager/uffd"
)

// Region is a range of a VMM's memory as its handshake tells it: Firecracker's GuestRegionUffdMapping. The handshake is one message on a
// stream socket: a JSON array of regions, with the userfaultfd as SCM_RIGHTS.
type Region struct {
	// Base is the address in the VMM, Offset where the region begins in the image; in bytes, like Size.
	Base   uint64 `json:"base_host_virt_addr"`
	Size   uint64 `json:"size"`
	Offset uint64 `json:"offset"`
	// PageSize is in bytes, and so is PageSizeKiB, which older VMMs send instead.
	PageSize    uint64 `json:"page_size"`
	PageSizeKiB uint64 `json:"page_size_kib"`
}

// addr is where the region has offset off of the image.
func (r *Region) addr(off int64) uint64 { return r.Base + uint64(off) - r.Offset }

const (
	maxHandshake  = 64 << 10
	maxRegions    = 64
	handshakeTime = 10 * time.Second
)

// handshake is what a VMM sent.
type handshake struct {
	regions []Region
	uffd    int
	pid     int
}

// errStranger: whoever connected is not the VMM.
var errStranger = errors.New("connection by another user")

// receive takes a handshake for an image of so many bytes. The descriptor is the caller's to close.
func receive(conn *net.UnixConn, uid int, size int64) (handshake, error) {
	peer, err := peerOf(conn)
	if err != nil {
		return handshake{}, err
	}
	if int(peer.Uid) != uid {
		return handshake{}, fmt.Errorf("%w: uid %d, want %d", errStranger, peer.Uid, uid)
	}
	if err := conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return handshake{}, err
	}
	text, fds, err := readMessage(conn)
	h := handshake{regions: text, pid: int(peer.Pid)}
	if err == nil {
		err = checkRegions(text, size)
	}
	if err == nil && (len(fds) != 1 || !uffd.Is("self", strconv.Itoa(fds[0]))) {
		err = fmt.Errorf("handshake must carry one userfaultfd, got %d descriptors", len(fds))
	}
	if err == nil {
		h.uffd = fds[0]
		return h, nil
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	return handshake{}, err
}

func peerOf(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}

// readMessage reads until there is one whole JSON value, and collects descriptors.
func readMessage(conn *net.UnixConn) (regions []Region, fds []int, err error) {
	buf := make([]byte, maxHandshake)
	oob := make([]byte, unix.CmsgSpace(8*4))
	for have := 0; ; {
		n, oobn, flags, _, err := conn.ReadMsgUnix(buf[have:], oob)
		if oobn > 0 {
			fds = append(fds, rightsOf(oob[:oobn])...)
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err == nil && flags&unix.MSG_CTRUNC != 0 {
			err = errors.New("too many descriptors")
		}
		if err != nil {
			return nil, fds, fmt.Errorf("handshake: %w", err)
		}
		have += n
		if json.Valid(buf[:have]) {
			if err := json.Unmarshal(buf[:have], &regions); err != nil {
				return nil, fds, fmt.Errorf("handshake: %w", err)
			}
			return regions, fds, nil
		}
		if have == len(buf) {
			return nil, fds, fmt.Errorf("handshake: no JSON array of regions within %d bytes", maxHandshake)
		}
	}
}

func rightsOf(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds
}

// checkRegions refuses what cannot be regions of an image of so many bytes.
func checkRegions(regions []Region, size int64) error {
	if len(regions) == 0 || len(regions) > maxRegions {
		return fmt.Errorf("handshake: must have 1 to %d regions, got %d", maxRegions, len(regions))
	}
	for i, r := range regions {
		page := r.PageSize
		if page == 0 {
			page = r.PageSizeKiB
		}
		switch {
		case page != PageSize:
			return fmt.Errorf("handshake: region %d: page_size must be %d, got %d", i, PageSize, page)
		case r.Size == 0 || (r.Base|r.Size|r.Offset)%PageSize != 0:
			return fmt.Errorf("handshake: region %d: base_host_virt_addr, size and offset must be multiples of %d", i, PageSize)
		case r.Size > uint64(size) || r.Offset > uint64(size)-r.Size:
			return fmt.Errorf("handshake: region %d: ends past the image, which is of %d bytes", i, size)
		case r.Base+r.Size < r.Base:
			return fmt.Errorf("handshake: region %d: base_host_virt_addr is too large", i)
		}
		for j, q := range regions[:i] {
			if r.Base < q.Base+q.Size && q.Base < r.Base+r.Size {
				return fmt.Errorf("handshake: regions %d and %d overlap", j, i)
			}
		}
	}
	return nil
}
