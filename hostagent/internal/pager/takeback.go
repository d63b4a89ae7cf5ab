package pager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/pager/uffd"
)

// TakeBack takes over the session of a VMM process that a former process of this agent served, and wakes every thread that waits: those
// whose messages died with the former process fault again. Where the VMM has no userfaultfd yet, it is awaited as in Serve.
//
// What an anonymous session's VMM had discarded before is not known any more; touched again, it has what the image has.
func (c *Cache) TakeBack(_ context.Context, id string, img *Image, socket string, uid, pid int) (*Session, error) {
	s, err := c.begin(id, img, socket, uid)
	if err != nil {
		return nil, err
	}
	if err := s.takeBack(pid); err != nil {
		err = errors.Join(err, s.leave(context.Background()))
		return nil, fmt.Errorf("pager: take back session %s of process %d: %w", id, pid, err)
	}
	return s, nil
}

func (s *Session) takeBack(pid int) error {
	fd, err := fetchUffd(pid)
	if errors.Is(err, errNoUffd) {
		return s.await()
	}
	if err != nil {
		return err
	}
	h := handshake{uffd: fd, pid: pid}
	if h.regions, err = s.recall(pid); err == nil {
		err = checkRegions(h.regions, s.img.Size())
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	if err := s.connect(h); err != nil {
		return err
	}
	for i := range s.regions {
		if err := uffd.Wake(s.uffd, s.regions[i].Base, s.regions[i].Size); err != nil {
			return err
		}
	}
	return nil
}

// recall finds the VMM's regions: where it maps the image, else what was recorded.
func (s *Session) recall(pid int) ([]Region, error) {
	mapped, err := FindMapping(pid, s.img.file.ro)
	if err != nil || len(mapped) > 0 {
		return mapped, err
	}
	text, err := os.ReadFile(s.recordPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("it does not map the image, and no regions are on record")
	}
	if err != nil {
		return nil, err
	}
	var regions []Region
	return regions, json.Unmarshal(text, &regions)
}

var errNoUffd = errors.New("the process has no userfaultfd")

// fetchUffd duplicates the userfaultfd of a process into this one.
func fetchUffd(pid int) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return -1, err
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil || !uffd.Is(strconv.Itoa(pid), e.Name()) {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			return -1, fmt.Errorf("pidfd_getfd: %w", err)
		}
		// The number may have become another file since its name was read.
		if uffd.Is("self", strconv.Itoa(fd)) {
			return fd, nil
		}
		unix.Close(fd)
	}
	return -1, errNoUffd
}
